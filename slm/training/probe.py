"""Measures time and memory of a few training steps on random tokens."""

import statistics
from dataclasses import dataclass

import torch

from slm.errors import is_out_of_memory
from slm.hardware import clock
from slm.model import GPT, GPTConfig
from slm.training.loss import NextTokenLoss
from slm.training.memory import keep_freed_memory, peak_memory
from slm.training.optimization import OptimizerOptions, make_optimizer
from slm.training.precision import autocast, can_fuse


@dataclass(frozen=True)
class Measurement:
    """The cost of one configuration on this machine."""

    micro_batch_seconds: float
    """Forward and backward of one micro-batch, median."""
    update_seconds: float
    """One step of the optimizer, median."""
    peak_bytes: int
    """Peak memory, as `peak_memory` says."""
    first_seconds: float
    """The first forward and backward, compilation included."""

    def step_seconds(self, micro_batches: int) -> float:
        """Seconds of an optimizer step over so many micro-batches."""
        return micro_batches * self.micro_batch_seconds + self.update_seconds


def measure(
    gpt: GPTConfig,
    optimizer: OptimizerOptions,
    device: torch.device,
    *,
    batch_size: int,
    precision: str,
    compile: bool = False,
    seconds: float = 1.5,
) -> Measurement | None:
    """Trains a model with random weights for some steps; None if the memory does not suffice.

    The random state is left unchanged, except on MPS, where that is impossible. After one step that
    does not count, at least two steps and `seconds` are measured: shorter measurements depend too
    much on other processes.
    """
    cuda = device.type == "cuda"
    if device.type == "cpu":
        keep_freed_memory()
    try:
        with torch.random.fork_rng([device] if cuda else []):
            if cuda:
                torch.cuda.reset_peak_memory_stats(device)
            model = GPT(gpt).to(device, torch.float64 if precision == "64-true" else None)
            update = make_optimizer(model, optimizer, fused=can_fuse(precision, device.type))
            loss_of = NextTokenLoss(compile)
            tokens_BT = torch.randint(gpt.vocab_size, (batch_size, gpt.block_size), device=device)
            targets_BT = tokens_BT.clone()
            times: list[tuple[float, float]] = []
            while len(times) < 3 or sum(map(sum, times[1:])) < seconds:
                start = clock(device)
                with autocast(precision, device.type):
                    loss = loss_of(model, tokens_BT, targets_BT)
                torch.autograd.backward(loss)
                middle = clock(device)
                update.step()
                loss_of.recycle(model)
                update.zero_grad()
                times.append((middle - start, clock(device) - middle))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    forward, step = zip(*times[1:], strict=True)
    peak = peak_memory(device)
    return Measurement(statistics.median(forward), statistics.median(step), peak, times[0][0])
