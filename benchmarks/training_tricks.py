"""What each trick of the training step is worth: taken away alone, in turns with the whole.

Usage:

    python benchmarks/training_tricks.py --config small --batch_size 32 --out tricks.json

Each variant is `bench train`'s bare loop in a process of its own, with one thing changed. It takes
turns with the unchanged step, so that both see the same machine; the ratios are medians.
"""

import argparse
import dataclasses
import json
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from slm.bench import variants
from slm.bench.variants import Rounds, Training, train_bare
from slm.commands.parsing.configs import find_config, model_of_config
from slm.hardware import find_device
from slm.model import GPT, gpt
from slm.training import loss
from slm.training.loss import LinearCrossEntropy, NextTokenLoss
from slm.training.memory import peak_memory
from slm.training.optimization import OptimizerOptions
from slm.training.precision import resolve_precision


class PlainLoss(NextTokenLoss):
    """All logits at once, by `F.cross_entropy`, compiled together with the network."""

    def __init__(self, compile: bool = False) -> None:
        super().__init__()

        def whole(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
            return F.cross_entropy(model(inputs).flatten(0, 1).float(), targets.flatten())

        self._whole = torch.compile(whole, dynamic=False) if compile else whole

    def __call__(self, model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        return self._whole(model, inputs, targets)

    def recycle(self, model: GPT) -> None:
        """Nothing to use again."""


class TorchsLoss(NextTokenLoss):
    """torch's own chunked `linear_cross_entropy`, behind the compiled network."""

    def __call__(self, model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch."""
        from torch.nn import LinearCrossEntropyOptions

        hidden = self._network(model, model.token_embedding(inputs)).flatten(0, 1)
        dtype = torch.bfloat16 if torch.is_autocast_enabled(inputs.device.type) else hidden.dtype
        return F.linear_cross_entropy(
            hidden.to(dtype),
            model.head_weight.to(dtype),
            targets.flatten(),
            options=LinearCrossEntropyOptions(batch_chunk_size=1024),
        )

    def recycle(self, model: GPT) -> None:
        """Nothing to use again."""


def use_loss(kind: type[NextTokenLoss]) -> None:
    """Trains with another loss."""
    variants.NextTokenLoss = kind  # type: ignore[misc]


def without_tied_embedding() -> None:
    """Leaves the two gradients of a tied matrix to autograd."""
    apply = LinearCrossEntropy.apply
    LinearCrossEntropy.apply = lambda *arguments: apply(*arguments[:-1], None)
    loss.TiedEmbedding.apply = lambda weight, tokens, meeting: F.embedding(tokens, weight)


def without_fused_adamw() -> None:
    """AdamW as a loop over tensors."""
    make = variants.make_optimizer
    variants.make_optimizer = lambda model, options, fused: make(model, options, fused=False)


def rows(count: int) -> None:
    """Logits of that many positions at once."""
    loss.rows_at_once = lambda *_: count


def set_in(module: Any, name: str, value: Any) -> None:
    """Changes a constant or a function of a module."""
    assert hasattr(module, name)
    setattr(module, name, value)


CHANGES: dict[str, Callable[[], None]] = {
    "the whole": lambda: None,
    "plain cross-entropy on all logits, compiled": lambda: use_loss(PlainLoss),
    "torch's linear_cross_entropy, chunks of 1024": lambda: use_loss(TorchsLoss),
    "chunks of 128 positions": lambda: rows(128),
    "chunks of 2048 positions": lambda: rows(2048),
    "vocabulary not padded": lambda: set_in(loss, "_PADDING", 1),
    "the weight's gradient in one piece": lambda: set_in(loss, "_SLICE", 1 << 30),
    "the embedding's gradient apart": without_tied_embedding,
    "torch's attention kernel": lambda: set_in(gpt, "_fused_is_faster", lambda queries: False),
    "nothing computed twice": lambda: set_in(loss, "_ACTIVATION_BUDGET", 1.0),
    "freed memory returned": lambda: set_in(variants, "keep_freed_memory", lambda: False),
    "AdamW not fused": without_fused_adamw,
    "dropout 0.1": lambda: None,
    "blocks computed twice": lambda: None,
}


def serve(line: Connection, name: str, training: Training) -> None:
    """A worker: changes one thing and trains on demand."""
    CHANGES[name]()
    if name == "dropout 0.1":
        training = dataclasses.replace(training, gpt=dataclasses.replace(training.gpt, dropout=0.1))
    if name == "blocks computed twice":
        training = dataclasses.replace(training, grad_checkpointing=True)
    with tempfile.TemporaryDirectory() as folder:
        train_bare(training, Rounds(line, training.device), Path(folder))
    line.send(peak_memory(torch.device(training.device)))


class Worker:
    """The other end of `serve`."""

    def __init__(self, name: str, training: Training) -> None:
        context = multiprocessing.get_context("spawn")
        self._line, other_end = context.Pipe()
        self._process = context.Process(target=serve, args=(other_end, name, training))
        self._process.start()
        other_end.close()

    def turn(self) -> float:
        """Seconds of a step."""
        self._line.send(1)
        return float(self._line.recv())

    def finish(self) -> int:
        """Ends it; its memory at its highest."""
        self._line.send(None)
        peak = int(self._line.recv())
        self._process.join()
        return peak


def main() -> None:
    """Measures every change against the whole."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="small")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--only", nargs="+", choices=CHANGES)
    parser.add_argument("--out", type=Path, default=Path("tricks.json"))
    options = parser.parse_args()
    config = find_config(options.config)
    training = Training(
        dataclasses.replace(model_of_config(config), dropout=0.0),
        OptimizerOptions(),
        options.batch_size,
        resolve_precision("auto", find_device("auto").type),
        compile=not options.eager,
        grad_checkpointing=False,
        device=find_device("auto").type,
        gradient_clip_val=1.0,
        log_interval=10,
    )
    whole = Worker("the whole", training)
    for _ in range(3):
        whole.turn()
    found: dict[str, dict[str, Any]] = {}
    for name in options.only or list(CHANGES)[1:]:
        worker = Worker(name, training)
        for _ in range(2):
            worker.turn()
        pairs = [(worker.turn(), whole.turn()) for _ in range(options.repeats)]
        ratios = [changed / unchanged for changed, unchanged in pairs]
        found[name] = {
            "times_the_step": statistics.median(ratios),
            "ratios": ratios,
            "seconds": statistics.median(changed for changed, _ in pairs),
            "peak_bytes": worker.finish(),
        }
        print(
            f"{name:46} {found[name]['times_the_step']:.3f} times the step "
            f"({min(ratios):.3f} to {max(ratios):.3f}), {found[name]['peak_bytes'] / 1e9:.2f} GB",
            flush=True,
        )
    peak = whole.finish()
    print(f"{'the whole':46} {peak / 1e9:.2f} GB")
    options.out.write_text(json.dumps({"whole_peak_bytes": peak, "changes": found}, indent=1))


if __name__ == "__main__":
    main()
