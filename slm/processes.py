"""One run in several processes: which one this is, and what happens when another one ends."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_POLL = 0.5  # seconds
_GRACE = 5.0  # seconds in which a process may report its error


def process_rank() -> int:
    """The number of this process among those of its run, before any of them is connected.

    As torchrun, Lightning's own launcher or `srun` say. The variables that SLURM leaves in every
    shell of a job are not asked: there is only one process then.
    """
    for name in ("RANK", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return int(os.environ["SLURM_PROCID"]) if started_by_srun() else 0


def in_slurm_job() -> bool:
    """Whether this shell belongs to a SLURM job, or inherited its variables."""
    return "SLURM_JOB_ID" in os.environ or "SLURM_NTASKS" in os.environ


def started_by_srun() -> bool:
    """Whether `srun` has started this process as one of several."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return tasks.isdigit() and int(tasks) > 1 and "SLURM_PROCID" in os.environ


def started_by_torchrun() -> bool:
    """Whether `torchrun` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


_ending = threading.Lock()


def end_run(what: str) -> None:
    """Ends this process, with words, because another one of its run has ended.

    Without clean-up: whatever talks to the other process would wait for it.
    """
    if _ending.acquire(blocking=False):
        print(
            f"\nslm: error: {what}; the run cannot continue without it\n"
            "  expected: all processes of a run until its end\n"
            "  remedy:   look above for its reason, or in the system's log (out of memory?); then "
            "continue from the last checkpoint: slm fit --ckpt_path last",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
    threading.Event().wait()  # another thread is doing so


_over = threading.Event()


def run_is_over() -> None:
    """From now on the processes of the run end, each in its own time."""
    _over.set()


def observe_children(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Watches the processes that this one has started, and ends the run if one of them fails.

    In place of Lightning's observer, which kills this process without a word.
    """
    _over.clear()
    threading.Thread(target=_observe, args=(children,), daemon=True).start()


def _observe(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    failed: dict[int, int] = {}
    while not failed:
        if _over.wait(_POLL):
            return
        codes = {rank: child.poll() for rank, child in enumerate(children, start=1)}
        failed = {rank: code for rank, code in codes.items() if code}
        if all(code == 0 for code in codes.values()):
            return
    rank, code = next(iter(failed.items()))
    if code > 0 and _over.wait(_GRACE):  # it has printed its reason; perhaps this one found it, too
        return
    for child in children:
        child.kill()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    end_run(f"process {rank} of {len(children) + 1} {how}")


def watch_parent() -> None:
    """In a process that the first one has started: ends when that one does."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            if _over.wait(_POLL):
                return
        end_run("the first process of this run has ended")

    _over.clear()
    if process_rank() and not (started_by_torchrun() or started_by_srun()):
        threading.Thread(target=watch, daemon=True).start()
