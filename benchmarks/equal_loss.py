"""Does the fast step train as the plain one does? Loss after some steps, beside a reference.

Usage:

    python benchmarks/equal_loss.py FOLDER --steps 200 --batch_size 32 --out equal-loss.json

FOLDER is prepared data, as `slm prepare` writes. The reference is as plain as can be: float32,
nothing compiled, `F.cross_entropy` on all logits, AdamW without fused kernels, a bare loop. The
other variant is this project's Trainer with its defaults on this machine, compiled. Both start from
the same weights and see the same batches; both are judged at the end by the reference's loss on the
same windows of the validation split. A variant that OUT already holds is not run again.

Two runs that differ in rounding alone part anyway, once the learning rate is high. How far chance
takes them apart is seen with `--arms ours ours+1 ours+2`: the same Trainer, from first weights
multiplied by 1 + 1e-6 x, x normal with the seed behind the plus sign. `reference+1` and `float32`
(ours without bfloat16), `float32+1`, … are there, too.
"""

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_

from slm.data.batches import IGNORED, ConsecutiveWindows, RandomWindows, TokenFile
from slm.data.datamodule import StoryData
from slm.data.manifest import Manifest
from slm.hardware import find_device
from slm.model import GPT, GPTConfig
from slm.training.module import StoryModel
from slm.training.optimization import OptimizerOptions, learning_rate_curve, make_optimizer
from slm.training.precision import resolve_precision

SHAPE = GPTConfig(dropout=0.0)
OPTIMIZER = OptimizerOptions(lr=1.5e-3, warmup_steps=50)


def plain_loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, as anyone would write it."""
    logits = model(inputs)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


def fresh_model(seed: int, nudge: int) -> GPT:
    """The classic model with weights that follow from the seed, nudged by a millionth."""
    torch.manual_seed(seed)
    model = GPT(SHAPE)
    if nudge:
        generator = torch.Generator().manual_seed(nudge)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 1e-6 * torch.randn(weight.shape, generator=generator))
    return model


def reference(
    folder: Path, device: torch.device, options: Any, nudge: int
) -> tuple[list[float], GPT]:
    """The losses of a plain float32 loop, and what it trained."""
    model = fresh_model(options.seed, nudge).to(device)
    optimizer = make_optimizer(model, OPTIMIZER, fused=False)
    curve = learning_rate_curve(OPTIMIZER, options.steps)
    tokens = TokenFile(Manifest.path(folder, "train"), Manifest.load(folder).dtype)
    windows = RandomWindows(tokens, SHAPE.block_size, options.batch_size, options.seed)
    losses = []
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = OPTIMIZER.lr * curve(step)
        inputs, targets = (ids.to(device) for ids in windows[step])
        loss = plain_loss(model, inputs, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 9:
            print(f"reference, step {step + 1}: {losses[-1]:.4f}", flush=True)
    return losses, model


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, *args: Any) -> None:
        """Reads the loss back."""
        self.values.append(args[2]["loss"].item())


def ours(
    folder: Path, device: torch.device, options: Any, nudge: int, precision: str = "auto"
) -> tuple[list[float], GPT]:
    """The losses of this project's Trainer, and what it trained."""
    module = StoryModel(SHAPE, OPTIMIZER, compile=True)
    module.model.load_state_dict(fresh_model(options.seed, nudge).state_dict())
    manifest = Manifest.load(folder)
    data = StoryData(
        source=manifest.source,
        root=str(folder.parent),
        batch_size=options.batch_size,
        block_size=SHAPE.block_size,
        seed=options.seed,
    )
    losses = Losses()
    trainer = Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        precision=resolve_precision(precision, device.type),
        max_steps=options.steps,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
    )
    if data.folder.resolve() != folder.resolve():
        raise SystemExit(f"{folder} is not what its source is prepared to: {data.folder}")
    trainer.fit(module, datamodule=data)
    return losses.values, module.model


VARIANTS: dict[str, Callable[..., tuple[list[float], GPT]]] = {
    "reference": reference,
    "ours": ours,
    "float32": functools.partial(ours, precision="32-true"),
}


def validation_loss(model: GPT, folder: Path, device: torch.device, batches: int) -> float:
    """The plain loss on the first batches of the validation split."""
    tokens = TokenFile(Manifest.path(folder, "validation"), Manifest.load(folder).dtype)
    windows = ConsecutiveWindows(tokens, SHAPE.block_size, 16)
    model = model.to(device).eval()
    with torch.no_grad():
        losses = [
            plain_loss(model, *(ids.to(device) for ids in windows[index])).item()
            for index in range(min(batches, len(windows) - 1))
        ]
    return sum(losses) / len(losses)


def main() -> None:
    """Runs the variants that are missing and compares."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=["reference", "ours"])
    parser.add_argument("--out", type=Path, default=Path("equal-loss.json"))
    options = parser.parse_args()
    device = find_device("auto")
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    asked = {name: getattr(options, name) for name in ("steps", "batch_size", "seed")}
    for variant, run in found.items():
        if any(run[name] != value for name, value in asked.items()):
            parser.error(f"{options.out} contains {variant} with other options than {asked}")
    for variant in options.arms:
        if variant not in found:
            started = time.perf_counter()
            name, _, nudge = variant.partition("+")
            losses, model = VARIANTS[name](options.folder, device, options, int(nudge or 0))
            found[variant] = {
                "steps": options.steps,
                "batch_size": options.batch_size,
                "seed": options.seed,
                "seconds": time.perf_counter() - started,
                "validation_loss": validation_loss(model, options.folder, device, 40),
                "losses": losses,
            }
            options.out.write_text(json.dumps(found, indent=1) + "\n")
    base = found.get("reference", next(iter(found.values())))
    for variant, run in found.items():
        print(variant)
        for name, before, after in (
            ("first step", base["losses"][0], run["losses"][0]),
            ("mean of all steps", *(sum(f["losses"]) / len(f["losses"]) for f in (base, run))),
            ("last 20 steps", *(sum(f["losses"][-20:]) / 20 for f in (base, run))),
            ("validation", base["validation_loss"], run["validation_loss"]),
        ):
            print(f"  {name:18} {after:.5f}  {after / before - 1:+.4%}")


if __name__ == "__main__":
    main()
