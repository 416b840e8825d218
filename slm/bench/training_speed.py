"""Speed of training: worker processes in rounds, medians, and the machine's matrix rate."""

import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slm.bench.matrix_rate import MatrixRate
from slm.bench.variants import Training, work
from slm.model.flops import training_flops_per_token
from slm.training.precision import MIXED_FORMATS

_ROUND_SECONDS = 2.0
_LOOP_STEPS = 500


@dataclass
class Rate:
    """The speed of one variant."""

    arm: str
    training: Training
    tokens_per_second: list[float] = field(default_factory=list)
    """One for each round."""
    utilization: list[float] = field(default_factory=list)
    """Model FLOPs per second as a share of what matrix products reached in the same round."""
    peak_bytes: int = 0
    """Peak memory: of the device on CUDA, elsewhere of the whole process."""
    parts: dict[str, float] | None = None
    """Median seconds of each part of a step; of the bare loop only."""

    @property
    def median(self) -> float:
        """Tokens per second."""
        return statistics.median(self.tokens_per_second)

    @property
    def step_seconds(self) -> float:
        """Seconds of a step."""
        return self.training.batch_size * self.training.gpt.block_size / self.median

    def times(self, other: "Rate") -> tuple[float, float, float]:
        """Speed relative to another variant in the same rounds: median, lowest, highest."""
        pairs = zip(self.tokens_per_second, other.tokens_per_second, strict=True)
        ratios = [one / another for one, another in pairs]
        return statistics.median(ratios), min(ratios), max(ratios)


class _Worker:
    """A process that trains on demand."""

    def __init__(self, variant: str, training: Training, path: Path | None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=work, args=(other_end, variant, training, path))
        self._process.start()
        other_end.close()

    def train(self, steps: int) -> float:
        """Seconds of so many steps.

        Raises:
            RuntimeError: The worker failed.
        """
        self._connection.send(steps)
        return float(self._receive())

    def _receive(self) -> Any:
        try:
            answer = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(
                f"the process ended with status {self._process.exitcode}, perhaps out of memory"
            ) from None
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return answer

    def finish(self) -> dict[str, Any]:
        """Ends the process; returns its peak memory and the parts of a step."""
        self._connection.send(None)
        last: dict[str, Any] = self._receive()
        self._process.join()
        return last

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process.is_alive():
            self._process.kill()
        self._process.join()


@contextmanager
def _workers() -> Iterator[Callable[[str, Training, Path | None], _Worker]]:
    """Starts workers, and leaves none running."""
    started: list[_Worker] = []

    def start(variant: str, training: Training, path: Path | None) -> _Worker:
        started.append(_Worker(variant, training, path))
        return started[-1]

    try:
        yield start
    finally:
        for worker in started:
            worker.kill()


def measure_training(
    variants: Mapping[str, tuple[str, Training, Path | None]],
    repeats: int,
    steps: int | None,
    say: Callable[[str], None],
) -> tuple[list[Rate], float]:
    """Measures several variants of training in rounds. All of them are in memory at once.

    By their names in the table come a name in `VARIANTS`, what to train, and nanoGPT's path. A
    round without a number of steps lasts some seconds.

    Returns:
        Rates of those that did not fail, and operations per second of matrix products, the median.
    """
    (first, *_) = (training for _, training, _ in variants.values())
    number_format = MIXED_FORMATS.get(first.precision, torch.float32)
    matrices = MatrixRate(torch.device(first.device), number_format)
    rates: dict[str, Rate] = {}
    measured: list[float] = []
    with _workers() as start:
        ready: dict[str, tuple[_Worker, int]] = {}
        for name, (variant, training, path) in variants.items():
            say(f"Preparing  {name}")
            worker = start(variant, training, path)
            with _left_out(name, say, ready, rates):
                worker.train(1)
                seconds = worker.train(1)
                ready[name] = worker, steps or max(1, round(_ROUND_SECONDS / seconds))
                rates[name] = Rate(name, training)
            if name not in ready:
                worker.kill()
        for round_ in range(repeats):
            say(f"Measuring  round {round_ + 1} of {repeats}")
            possible = matrices.measure()
            measured.append(possible)
            for name, (worker, count) in list(ready.items()):
                training = rates[name].training
                tokens = count * training.batch_size * training.gpt.block_size
                with _left_out(name, say, ready, rates):
                    rate = tokens / worker.train(count)
                    rates[name].tokens_per_second.append(rate)
                    flops = rate * training_flops_per_token(training.gpt)
                    rates[name].utilization.append(flops / possible)
        for name, (worker, _) in list(ready.items()):
            with _left_out(name, say, ready, rates):
                last = worker.finish()
                rates[name].peak_bytes, rates[name].parts = last["peak"], last["parts"]
    return list(rates.values()), statistics.median(measured)


@contextmanager
def _left_out(name: str, say: Callable[[str], None], *tables: dict[str, Any]) -> Iterator[None]:
    """Reports the failure of a variant, and removes it from the tables."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        say(f"  {name} does not work here: {' '.join(str(error).split())[:300]}")
        for table in tables:
            table.pop(name, None)


def measure_loop(training: Training, repeats: int) -> dict[str, float]:
    """Median seconds of a step with nothing to compute.

    Returns:
        Under `loop alone` Lightning's, under `loop` with our callbacks, and the difference.
    """
    found: dict[str, list[float]] = {"loop alone": [], "loop": []}
    with _workers() as start:
        workers = {name: start(name, training, None) for name in found}
        for worker in workers.values():
            worker.train(_LOOP_STEPS)
        for _ in range(repeats):
            for name, worker in workers.items():
                found[name].append(worker.train(_LOOP_STEPS) / _LOOP_STEPS)
        for worker in workers.values():
            worker.finish()
    pairs = zip(found["loop"], found["loop alone"], strict=True)
    return {name: statistics.median(seconds) for name, seconds in found.items()} | {
        "callbacks": statistics.median(ours - alone for ours, alone in pairs)
    }
