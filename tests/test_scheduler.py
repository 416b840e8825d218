"""Many clients on one batch: the queue, time, cancelling, and failures."""

import queue

import pytest
import torch

from slm.data.tokenizer import Tokenizer
from slm.generation import SamplingOptions
from slm.generation.storyteller import Story, StoryRequest, Storyteller
from slm.model import GPT, GPTConfig
from slm.serving import scheduler as scheduler_module
from slm.serving.scheduler import Limits, QueueFullError, Scheduler

TOKENIZER = Tokenizer("bpe", {bytes([byte]): byte for byte in range(256)}, 257)


@pytest.fixture
def storyteller():
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=32, vocab_size=257, n_layer=1, n_head=2, n_embd=16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Storyteller(model, TOKENIZER)


class Client:
    """Collects what the scheduler tells it."""

    def __init__(self, scheduler):
        self._scheduler = scheduler
        self._events = queue.Queue()

    def submit(self, tokens, *seeds):
        options = [
            SamplingOptions(max_new_tokens=tokens, min_new_tokens=tokens, seed=seed)
            for seed in seeds
        ]
        stories = [Story(StoryRequest("Tom", each), TOKENIZER) for each in options]
        jobs = self._scheduler.submit(stories, lambda *event: self._events.put(event))
        return jobs if len(jobs) > 1 else jobs[0]

    def wait(self, count=1):
        """Until so many jobs have ended: their pieces, together, by job."""
        texts = {}
        while count:
            job, piece, last = self._events.get(timeout=20)
            texts[job] = texts.get(job, "") + piece
            count -= last
        return texts


@pytest.fixture
def make(storyteller):
    made = []

    def start(batch_size=2, **limits):
        made.append(Scheduler(storyteller, batch_size, Limits(**limits)))
        return made[-1], Client(made[-1])

    yield start
    for scheduler in made:
        scheduler.close()


def test_stories_are_those_generated_alone(make, storyteller):
    scheduler, client = make()
    jobs = [client.submit(20, seed) for seed in range(6)]
    texts = client.wait(6)
    for job in jobs:
        assert texts[job] == job.story.text == "".join(storyteller.generate(job.story.request))
    assert scheduler.generated == 120
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_the_queue_is_bounded_and_takes_all_or_none(make):
    scheduler, client = make(batch_size=1, queue=2)
    running = client.submit(10**6, 1)
    while not scheduler.running:
        pass
    with pytest.raises(QueueFullError):
        client.submit(5, 2, 3, 4)
    assert scheduler.waiting == 0
    first, second = client.submit(5, 2, 3)
    with pytest.raises(QueueFullError):
        client.submit(5, 4)
    scheduler.cancel([running, first])
    texts = client.wait()
    assert running.failure == first.failure == "cancelled"
    assert second.failure is None
    assert texts[second] == second.story.text


def test_who_waits_or_generates_too_long_is_ended(make):
    scheduler, client = make(batch_size=1, seconds=0.3)
    generated, waited = client.submit(10**6, 1, 2)
    waited.submitted = generated.submitted
    texts = client.wait(2)
    assert generated.failure == waited.failure == "timeout"
    assert texts[generated]
    assert not texts[waited]
    assert scheduler.running == 0


def test_after_an_error_the_next_stories_are_generated(make, storyteller, monkeypatch, capsys):
    scheduler, client = make()
    unembed = storyteller.model.unembed
    monkeypatch.setattr(storyteller.model, "unembed", lambda hidden: 1 / 0)
    job = client.submit(5, 1)
    client.wait()
    assert job.failure == "error"
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setattr(storyteller.model, "unembed", unembed)
    job = client.submit(5, 1)
    client.wait()
    assert job.failure is None
    assert scheduler.running == 0


def test_not_even_a_second_error_ends_the_scheduler(make, monkeypatch, capsys):
    _, client = make()
    errors = iter([MemoryError("out of memory"), MemoryError("again")])
    batch = scheduler_module.StoryBatch

    def fail_twice(*arguments):
        if error := next(errors, None):
            raise error
        return batch(*arguments)

    monkeypatch.setattr(scheduler_module, "StoryBatch", fail_twice)
    for failure in ("error", "error", None):
        job = client.submit(5, 1)
        client.wait()
        assert job.failure == failure
    assert "again" in capsys.readouterr().err


def test_a_single_story_takes_the_last_free_row(make):
    scheduler, client = make(batch_size=16)
    running = client.submit(10**6, *range(15))
    while scheduler.running < 15:
        pass
    client.submit(5, 99)
    (text,) = [text for job, text in client.wait().items() if job.story.ended]
    assert text
    assert scheduler.running == 15
    scheduler.cancel(running)


def test_closing_ends_what_waits(make):
    scheduler, client = make(batch_size=1)
    jobs = client.submit(10**6, 1), client.submit(5, 2)
    scheduler.close()
    assert [job.failure for job in jobs] == ["cancelled", "cancelled"]
    with pytest.raises(QueueFullError):
        client.submit(5, 3)
