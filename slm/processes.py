"""Runs of several processes: this process's rank, and the end of the run if another one fails."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

_POLL = 0.5  # seconds
_GRACE = 5.0  # seconds for a process to report its error
_ending = threading.Lock()  # held by the thread that exits
_over = threading.Event()  # set when processes may end without an error


def process_rank() -> int:
    """The rank of this process, also before the processes of its run are connected.

    It is set by torchrun, Lightning's launcher or `srun`. The variables that SLURM sets in every
    shell of a job do not count: there is only one process then.
    """
    for name in ("RANK", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return int(os.environ["SLURM_PROCID"]) if started_by_srun() else 0


def in_slurm_job() -> bool:
    """Whether the variables of a SLURM job are set."""
    return "SLURM_JOB_ID" in os.environ or "SLURM_NTASKS" in os.environ


def started_by_srun() -> bool:
    """Whether `srun` started this process as one of several."""
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
    return tasks.isdigit() and int(tasks) > 1 and "SLURM_PROCID" in os.environ


def started_by_torchrun() -> bool:
    """Whether `torchrun` started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def drop_left_over_rank() -> None:
    """Removes a stale RANK or LOCAL_RANK, left in the shell by an earlier distributed run."""
    size = os.environ.get("WORLD_SIZE", "")
    several = "MASTER_ADDR" in os.environ and size.isdigit() and int(size) > 1
    for name in ("RANK", "LOCAL_RANK"):
        if not (several or started_by_torchrun()) and (rank := os.environ.pop(name, None)):
            print(
                f"Ignored    {name}={rank} in the environment: a run is distributed only if "
                "MASTER_ADDR is set and WORLD_SIZE is above 1",
                file=sys.stderr,
            )


def end_run(what: str) -> None:
    """Exits with an error message because another process of the run has ended.

    There is no clean-up: any communication would wait for the other process.
    """
    if _ending.acquire(blocking=False):
        print(
            f"\nslm: error: {what}; the run cannot continue without it\n"
            "  expected: all processes of a run until its end\n"
            "  remedy:   look for the reason above, or in the system's log (out of memory?); then "
            "continue from the last checkpoint: slm fit --ckpt_path last",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
    threading.Event().wait()  # another thread is exiting


def run_is_over() -> None:
    """From now on processes of the run may end without an error."""
    _over.set()


def observe_children(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Watches the processes that this one has started, and ends the run if one of them fails.

    Replaces Lightning's observer, which kills this process without a message.
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
    if code > 0 and _over.wait(_GRACE):  # it printed its error; this process may have it, too
        return
    for child in children:
        child.kill()
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    end_run(f"process {rank} of {len(children) + 1} {how}")


def watch_parent() -> None:
    """Ends the run when the first process ends, if that one has started this one."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            if _over.wait(_POLL):
                return
        end_run("the first process of this run has ended")

    _over.clear()
    if process_rank() and not (started_by_torchrun() or started_by_srun()):
        threading.Thread(target=watch, daemon=True).start()
