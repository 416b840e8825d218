"""Variants of training, each in a worker process that trains some steps on demand.

A process per variant, so that its memory can be measured; all of them stay alive and work in
rounds, so that a slow moment of the machine affects all of them.
"""

import contextlib
import importlib.util
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

from slm import hardware
from slm.data.batches import Batch, EveryNth, RandomWindows, TokenFile
from slm.data.datamodule import StoryData
from slm.model import GPT, GPTConfig
from slm.training.callbacks.compiling import CompileAtStart
from slm.training.callbacks.curves import TrainingCurves
from slm.training.callbacks.standard import standard_callbacks
from slm.training.loss import NextTokenLoss
from slm.training.memory import keep_freed_memory, peak_memory, return_freed_memory
from slm.training.module import StoryModel
from slm.training.optimization import OptimizerOptions, make_optimizer
from slm.training.precision import autocast, can_fuse

_TOKENS = 1 << 20  # in the file of random tokens that is trained on
_TIMED_STEPS = 5


@dataclass(frozen=True)
class Training:
    """What is trained, and how."""

    gpt: GPTConfig
    optimizer: OptimizerOptions
    batch_size: int
    """Windows per step."""
    precision: str
    """As the Trainer's."""
    compile: bool
    grad_checkpointing: bool
    device: str
    gradient_clip_val: float
    log_interval: int
    """Optimizer steps between two log points."""

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The context of the forward pass."""
        return autocast(self.precision, torch.device(self.device).type)


class Rounds:
    """A worker's end of the connection: it trains on demand, and reports the time of the steps."""

    def __init__(self, connection: Connection, device: str) -> None:
        self._connection = connection
        self._device = torch.device(device)
        self._left = 0
        self._started = 0.0

    def clock(self) -> float:
        """Seconds, once the device has finished its queued work."""
        return hardware.clock(self._device)

    def wait(self) -> bool:
        """Waits for the next round; False if there are no more."""
        steps = self._connection.recv()
        self._left = steps or 0
        self._started = self.clock()
        return steps is not None

    def after_step(self) -> bool:
        """Counts a step. At the end of a round reports and waits; False if there are no more."""
        self._left -= 1
        if self._left:
            return True
        self._connection.send(self.clock() - self._started)
        return self.wait()


# ---- data ---------------------------------------------------------------------------------


class _RandomTokenizer:
    """The part of a tokenizer that training needs."""

    def __init__(self, n_vocab: int) -> None:
        self.n_vocab = n_vocab

    def identity(self) -> dict[str, Any]:
        return {"name": "random", "n_vocab": self.n_vocab, "sha256": ""}

    def byte_lengths(self) -> Any:
        return np.ones(self.n_vocab, dtype=np.int64)


class RandomStories(StoryData):
    """Random tokens in a file: speed does not depend on their meaning."""

    def __init__(self, folder: Path, training: Training) -> None:
        gpt = training.gpt
        super().__init__(
            source="builtin", batch_size=training.batch_size, block_size=gpt.block_size, seed=0
        )
        dtype = np.dtype("<u2" if gpt.vocab_size <= 1 << 16 else "<u4")
        self.tokens = TokenFile(folder / "train.bin", dtype)
        random = np.random.default_rng(0)
        random.integers(gpt.vocab_size, size=_TOKENS, dtype=dtype).tofile(self.tokens.path)
        self.tokenizer = _RandomTokenizer(gpt.vocab_size)  # type: ignore[assignment]

    def prepare_data(self) -> None:
        """Does nothing: the file exists."""

    def setup(self, stage: str) -> None:
        """Does nothing."""

    def windows(self) -> RandomWindows:
        """The training batches."""
        return RandomWindows(self.tokens, self.block_size, self.batch_size, self.seed)

    def train_dataloader(self) -> DataLoader[Batch]:
        """The training batches, for a Trainer."""
        return self._loader(self.windows(), EveryNth())


# ---- variants -----------------------------------------------------------------------------


def train_by_trainer(training: Training, rounds: Rounds, folder: Path) -> None:
    """As `fit` does: Lightning's Trainer, our callbacks, curves, data."""
    model = StoryModel(
        training.gpt,
        training.optimizer,
        compile=training.compile,
        grad_checkpointing=training.grad_checkpointing,
    )
    data = RandomStories(folder, training)
    callbacks = [*standard_callbacks(TrainingCurves()), CompileAtStart(), _TakeRounds(rounds)]
    trainer = _make_trainer(training, folder, callbacks)
    trainer.fit(model, datamodule=data)


def _make_trainer(
    training: Training, folder: Path, callbacks: list[Callback], logger: bool = True
) -> Trainer:
    return Trainer(
        accelerator=training.device,
        devices=1,
        precision=training.precision,  # type: ignore[arg-type]
        max_steps=1_000_000,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        log_every_n_steps=training.log_interval,
        gradient_clip_val=training.gradient_clip_val,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder, default_hp_metric=False) if logger else False,
        callbacks=callbacks,
    )


class _TakeRounds(Callback):
    """Makes a Trainer wait for its next round between two steps."""

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._rounds.wait():
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._rounds.after_step():
            trainer.should_stop = True


def train_bare(training: Training, rounds: Rounds, folder: Path) -> dict[str, float]:
    """The same step without a Trainer: data, loss, clipping, optimizer.

    Returns:
        Median seconds of each part of a step, from steps after the last round.
    """
    device = torch.device(training.device)
    if device.type == "cpu":
        keep_freed_memory()
    torch.manual_seed(0)
    model = GPT(training.gpt).to(device, torch.float64 if "64" in training.precision else None)
    model.recompute = training.grad_checkpointing
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "16-mixed")
    optimizer = make_optimizer(
        model, training.optimizer, fused=can_fuse(training.precision, device.type)
    )
    loss_of = NextTokenLoss(training.compile)
    windows = RandomStories(folder, training).windows()
    marks: list[float] = []

    def step(index: int, mark: Callable[[], None]) -> None:
        mark()
        inputs_BT, targets_BT = (ids.to(device) for ids in windows[index])
        mark()
        with training.autocast():
            loss = loss_of(model, inputs_BT, targets_BT)
        mark()
        torch.autograd.backward(scaler.scale(loss))
        mark()
        scaler.unscale_(optimizer)
        if training.gradient_clip_val:
            clip_grad_norm_(model.parameters(), training.gradient_clip_val)
        scaler.step(optimizer)
        scaler.update()
        loss_of.recycle(model)
        optimizer.zero_grad()
        mark()

    _repeat(lambda index: step(index, lambda: None), rounds)
    parts = []
    for index in range(_TIMED_STEPS):
        marks.clear()
        step(index, lambda: marks.append(rounds.clock()))
        parts.append([after - before for before, after in pairwise(marks)])
    names = ("data", "forward", "backward", "optimizer")
    columns = zip(*parts, strict=True)
    return {name: statistics.median(part) for name, part in zip(names, columns, strict=True)}


def _repeat(step: Callable[[int], None], rounds: Rounds) -> None:
    """Steps as long as there are rounds; cleans up after the first, which compiles."""
    going, index = rounds.wait(), 0
    while going:
        step(index)
        if index == 0:
            return_freed_memory()
        index += 1
        going = rounds.after_step()


class NullModel(StoryModel):
    """Nothing to compute: what remains of a step is the loop around it."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(GPTConfig(8, vocab_size, 1, 1, 8, 0.0))
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.grad_norm = torch.zeros(())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A loss of zero."""
        return 1 * self.nothing

    def configure_optimizers(self) -> Optimizer:  # type: ignore[override]
        """SGD without a learning rate."""
        return SGD([self.nothing], lr=0.0)

    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None:
        """Does nothing."""

    def on_train_start(self) -> None:
        """Does nothing."""


def loop_with_callbacks(training: Training, rounds: Rounds, folder: Path) -> None:
    """The null model with all callbacks of `fit`."""
    callbacks = [*standard_callbacks(TrainingCurves()), CompileAtStart(), _TakeRounds(rounds)]
    trainer = _make_trainer(training, folder, callbacks)
    trainer.fit(NullModel(training.gpt.vocab_size), datamodule=RandomStories(folder, training))


def loop_alone(training: Training, rounds: Rounds, folder: Path) -> None:
    """The null model in Lightning's Trainer, without logger and callbacks."""
    trainer = _make_trainer(training, folder, [_TakeRounds(rounds)], logger=False)
    trainer.fit(NullModel(training.gpt.vocab_size), datamodule=RandomStories(folder, training))


def train_nanogpt(training: Training, rounds: Rounds, folder: Path) -> None:
    """The model and optimizer of nanoGPT in a bare step, on one batch.

    `folder` is the path of its model.py, which does not come with this project.
    """
    spec = importlib.util.spec_from_file_location("nanogpt_model", folder)
    assert spec is not None
    assert spec.loader is not None
    nanogpt = importlib.util.module_from_spec(spec)
    sys.modules["nanogpt_model"] = nanogpt
    spec.loader.exec_module(nanogpt)
    gpt, device = training.gpt, torch.device(training.device)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    with contextlib.redirect_stdout(sys.stderr):
        model = nanogpt.GPT(
            nanogpt.GPTConfig(
                gpt.block_size, gpt.vocab_size, gpt.n_layer, gpt.n_head, gpt.n_embd,
                gpt.dropout, gpt.bias,
            )
        ).to(device)  # fmt: skip
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
    compiled = torch.compile(model) if training.compile else model
    tokens = torch.randint(gpt.vocab_size, (training.batch_size, gpt.block_size + 1), device=device)
    inputs_BT, targets_BT = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step(index: int) -> None:
        with training.autocast():
            _, loss = compiled(inputs_BT, targets_BT)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _repeat(step, rounds)


VARIANTS: dict[str, Callable[[Training, Rounds, Path], dict[str, float] | None]] = {
    "trainer": train_by_trainer,
    "bare": train_bare,
    "nanogpt": train_nanogpt,
    "loop": loop_with_callbacks,
    "loop alone": loop_alone,
}


def work(connection: Connection, variant: str, training: Training, path: Path | None) -> None:
    """A worker's main function; it sends errors as text, finally peak memory and a step's parts."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            parts = VARIANTS[variant](
                training, Rounds(connection, training.device), path or Path(temporary)
            )
        except Exception as error:  # whatever it is, the parent process reports it
            connection.send(f"{type(error).__name__}: {error}")
            return
        connection.send({"parts": parts, "peak": peak_memory(torch.device(training.device))})
