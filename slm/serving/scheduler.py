"""The scheduler: many clients share one batch of the engine, in a thread of its own."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from slm.generation.storyteller import Story, StoryBatch, Storyteller

Failure = Literal["cancelled", "timeout", "error"]


@dataclass(frozen=True)
class Limits:
    """What clients may use."""

    queue: int = 64
    """Stories that wait for a free row at most."""
    seconds: float = 120.0
    """Time for a request, with its time in the queue."""


class QueueFullError(Exception):
    """The queue has no room for more stories."""


class Job:
    """A story that a client waits for.

    Attributes:
        story: The story.
        notify: Called with the job, a piece of its text, which may be empty, and whether that is
            the last: at each token, and if the job fails other than by `cancel`. It must return at
            once.
        failure: Why there is no whole story; None if there is one, or will be.
        done: Whether the story's text is complete.
        submitted: `time.perf_counter()` when it was submitted.
    """

    def __init__(self, story: Story, notify: Callable[["Job", str, bool], None]) -> None:
        self.story = story
        self.notify = notify
        self.failure: Failure | None = None
        self.done = False
        self.submitted = time.perf_counter()

    @property
    def ended(self) -> bool:
        """Whether nothing more will be generated."""
        return self.failure is not None or self.done


class Scheduler:
    """Generates the stories of all clients, each as if it were alone, in a thread of its own.

    Args:
        storyteller: With a network of `for_inference`.
        batch_size: Stories generated at once; the others wait.
        limits: For the queue and the time.
    """

    def __init__(
        self,
        storyteller: Storyteller,
        batch_size: int,
        limits: Limits = Limits(),
    ) -> None:
        self.storyteller = storyteller
        self.batch_size = batch_size
        self.limits = limits
        self.generated = 0
        """Tokens generated so far."""
        self._waiting: deque[Job] = deque()
        self._running: dict[Story, Job] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="slm-scheduler", daemon=True)
        self._thread.start()

    @property
    def running(self) -> int:
        """Stories being generated."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Stories in the queue."""
        return len(self._waiting)

    def submit(
        self, stories: Sequence[Story], notify: Callable[[Job, str, bool], None]
    ) -> list[Job]:
        """Puts stories into the queue, all or none. Their prompts must fit the model.

        Raises:
            QueueFullError: The queue is full.
        """
        jobs = [Job(story, notify) for story in stories]
        with self._changed:
            free = max(0, self.batch_size - self.running)
            if self._closing or self.waiting + len(jobs) > self.limits.queue + free:
                raise QueueFullError
            self._waiting += jobs
            self._changed.notify()
        return jobs

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Ends jobs; their rows are free from the next token on."""
        with self._changed:
            for job in jobs:
                if not job.ended:
                    job.failure = "cancelled"
            self._changed.notify()

    def close(self) -> None:
        """Ends everything, and the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        batch: StoryBatch | None = None
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closing):
                    self._changed.wait()
                if self._closing:
                    self._fail([*self._running.values(), *self._waiting], "cancelled")
                    return
                self._expire()
                room = batch.room(self.waiting) if batch else min(self.batch_size, self.waiting)
                admitted = [self._waiting.popleft() for _ in range(room)]
                self._running |= {job.story: job for job in admitted}
            try:
                if batch is None:
                    batch = StoryBatch(self.storyteller, self.batch_size)
                batch.admit([job.story for job in admitted])
                self._pass_on(batch.step())
            except Exception as error:  # out of memory, say: the next clients may be luckier
                print(f"slm: the stories under way have failed: {error!r}", file=sys.stderr)
                self._fail(list(self._running.values()), "error")
                batch = None

    def _expire(self) -> None:
        """Removes what has been cancelled or took too long."""
        oldest = time.perf_counter() - self.limits.seconds
        jobs = [*self._running.values(), *self._waiting]
        late = [job for job in jobs if not job.ended and job.submitted < oldest]
        self._fail(late, "timeout")
        for job in [job for job in self._running.values() if job.failure]:
            job.story.continuation.ended = "cancelled"
            del self._running[job.story]
        self._waiting = deque(job for job in self._waiting if not job.failure)

    def _fail(self, jobs: Sequence[Job], failure: Failure) -> None:
        for job in jobs:
            job.failure = job.failure or failure
            self._running.pop(job.story, None)
            job.story.continuation.ended = "cancelled"
            job.notify(job, "", True)

    def _pass_on(self, pieces: Sequence[tuple[Story, str]]) -> None:
        self.generated += len(pieces)
        for story, piece in pieces:
            job = self._running[story]
            if story.ended is not None:
                del self._running[story]
                job.done = True
            if job.failure is None:
                job.notify(job, piece, story.ended is not None)
