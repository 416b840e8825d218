"""The LightningModule: how a GPT is trained and measured."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slm.data.batches import Batch
from slm.data.datamodule import StoryData
from slm.data.tokenizer import CHECKPOINT_KEY, Tokenizer
from slm.errors import UserError
from slm.generation.storyteller import StoryRequest, Storyteller
from slm.hardware import widest_float
from slm.model import GPT, GPTConfig
from slm.training.callbacks.time_budget import format_duration, time_budget
from slm.training.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    align_progress,
    open_checkpoint,
)
from slm.training.finite import FiniteGradients, diverged
from slm.training.loss import NextTokenLoss, rows_at_once
from slm.training.memory import keep_freed_memory, return_freed_memory
from slm.training.metrics import LanguageModelMetrics
from slm.training.optimization import OptimizerOptions, learning_rate_curve, make_optimizer
from slm.training.precision import can_fuse


def check_sizes(data: int, model: int) -> None:
    """Compares the sizes of the data's and the model's vocabulary.

    Raises:
        UserError: They differ.
    """
    if data != model:
        raise UserError(
            f"the data's vocabulary has {data:,} tokens, the model's {model:,}",
            "the same vocabulary on both sides",
            f"--model.gpt.vocab_size {data}",
        )


def seed_generators(device: torch.device, seed: int) -> None:
    """Seeds torch's random numbers on the CPU and on a device.

    `torch.manual_seed` asks all kinds of device each time, which takes a tenth of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


_SCHEDULE = "The learning rate continues on another curve; it may jump."
_STEPS = "Steps have another size; training continues after the last window it has seen."
_ORDER = "Windows come in another order; some may come twice, others not at all."
EFFECTS = {
    **dict.fromkeys(
        ("lr", "min_lr_ratio", "warmup_steps", "decay_steps", "schedule", "cooldown_share"),
        _SCHEDULE,
    ),
    **dict.fromkeys(("batch_size", "accumulate_grad_batches", "processes"), _STEPS),
    **dict.fromkeys(("seed", "order"), _ORDER),
    "train.bin": "The stories are others than those it was trained on; a fresh optimizer may suit "
    "them better: --model.init_from.",
    "precision": "Results will differ by rounding.",
}
"""What a changed option means for a resumed run."""


class StoryModel(LightningModule):
    """A GPT, with how it is trained.

    Args:
        gpt: Shape of the network.
        optimizer: Optimizer and learning-rate schedule.
        compile: Whether to train through torch.compile; costs a minute, pays on GPUs.
        init_from: A checkpoint whose weights to start from, with a fresh optimizer and schedule;
            the data have to be in its vocabulary. No part of the model's own checkpoints.
        skip_nonfinite: Whether a step whose gradient is not finite is left out and training
            continues. Otherwise it stops there. On a GPU this costs a synchronisation per step.
        grad_checkpointing: Whether to keep only the input of each block and compute the rest once
            more for the gradients: less memory, a third more time.
    """

    def __init__(
        self,
        gpt: GPTConfig = GPTConfig(),
        optimizer: OptimizerOptions = OptimizerOptions(),
        compile: bool = False,
        init_from: str | None = None,
        grad_checkpointing: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        super().__init__()
        self.gpt = gpt
        self.optimizer_options = optimizer
        self.compile_model = compile
        self.init_from = init_from
        # Plain types only: a checkpoint has to open with weights_only=True.
        self.save_hyperparameters(
            {
                "gpt": asdict(self.gpt),
                "optimizer": asdict(self.optimizer_options),
                "compile": compile,
                "grad_checkpointing": grad_checkpointing,
                "skip_nonfinite": skip_nonfinite,
            }
        )
        self.model = GPT(self.gpt)
        self.model.recompute = grad_checkpointing
        self._loss = NextTokenLoss()
        self.metrics: LanguageModelMetrics | None = None
        self.tokenizer: Tokenizer | None = None
        self.grad_norm: Tensor | None = None
        self.skip_nonfinite = skip_nonfinite
        self._first_step = True

    # ---- set-up -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Takes the tokenizer from the data, and the first weights from where they are to come.

        Raises:
            UserError: The model's vocabulary is not the data's, or `init_from` does not fit.
        """
        data = self._data()
        if data is None:
            return
        self.tokenizer = data.tokenizer
        if stage == "fit" and self.init_from:
            checkpoint = open_checkpoint(Path(self.init_from).expanduser())
            checkpoint.check_tokenizer(self.tokenizer.identity())
            checkpoint.check_shape(asdict(self.gpt))
            self.model.load_state_dict(checkpoint.make_model().state_dict())
        check_sizes(self.tokenizer.n_vocab, self.gpt.vocab_size)
        self.metrics = LanguageModelMetrics(
            self.tokenizer.byte_lengths(),
            widest_float(self.trainer.strategy.root_device.type),
        )
        if self.compile_model and stage == "fit":
            self._loss = NextTokenLoss(compile=True)

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight (FSDP2)."""
        return isinstance(self.model, FSDPModule)

    def configure_model(self) -> None:
        """Shards the network for FSDP2 (Zhao et al. 2023, arXiv 2304.11277): block by block.

        Embedding and head, which are one matrix if tied, belong to the outermost unit.

        Raises:
            UserError: Options that need whole weights.
        """
        if self.sharded or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        for refused, option in (
            (self.optimizer_options.name == "muon", "--model.optimizer.name muon"),
            (self.compile_model, "--model.compile true"),
        ):
            if refused:
                raise UserError(
                    f"{option} with --trainer.strategy fsdp2, which cuts weights into pieces",
                    "AdamW, without compiling",
                    "--trainer.strategy ddp: a model of this size fits on each device",
                )
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.model, mesh=mesh)

    def _data(self) -> StoryData | None:
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, StoryData) else None

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, or Muon beside it, with a LambdaLR: linear warm-up, then down to a floor."""
        fused = can_fuse(str(self.trainer.precision), self.device.type)
        optimizer = make_optimizer(self.model, self.optimizer_options, fused=fused)
        # What the options say, for when a checkpoint has restored what it was trained with.
        self._group_options = [
            {name: value for name, value in group.items() if name not in ("params", "fused")}
            for group in optimizer.param_groups
        ]
        scheduler = LambdaLR(optimizer, self._schedule())
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def _schedule(self) -> Callable[[float], float]:
        curve = learning_rate_curve(self.optimizer_options, self._decay_steps())
        budget = time_budget(self.trainer)
        return curve if budget is None else lambda step: curve(budget.position())

    def _decay_steps(self) -> int:
        if budget := time_budget(self.trainer):
            return budget.steps
        return self.optimizer_options.decay_steps or self.trainer.max_steps

    # ---- training -----------------------------------------------------------------------

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Sets dropout's random state, so that it depends on nothing that a resumed run lacks."""
        if data := self._data():
            seed = data.dropout_seed(batch_idx % self.trainer.accumulate_grad_batches)
            seed_generators(self.device, seed)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch, in nats per token."""
        if self.sharded:  # FSDP2 gathers the weights when the whole network is called
            inputs_BT, targets_BT = batch
            return F.cross_entropy(self.model(inputs_BT).flatten(0, 1), targets_BT.flatten())
        try:
            return self._loss(self.model, *batch)
        except TorchDynamoException as error:
            rank_zero_warn(
                "torch.compile does not work on this machine; training goes on without it "
                f"({type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]})"
            )
            self._loss = NextTokenLoss()
            return self._loss(self.model, *batch)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips by total norm and keeps the norm from before, for the curves.

        By hand, because Lightning refuses to clip beside a fused optimizer in any mixed
        precision. A GradScaler has unscaled the gradients before this is called.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if getattr(self.trainer.precision_plugin, "scaler", None) is None:  # it skips by itself
            finite = self._finite.check(self.grad_norm, self.trainer.global_step + 1)
            if not finite:
                self.zero_grad(set_to_none=True)  # optimizers leave out what has no gradient
                return
        if gradient_clip_val:
            clip_grads_with_norm_(self.model.parameters(), gradient_clip_val, norm)

    def on_train_end(self) -> None:
        """Lets go of the memory that the loss keeps."""
        self.release_memory()

    def release_memory(self) -> None:
        """Lets go of what the loss keeps from step to step; Lightning does not ask after errors."""
        self._loss.release()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step and lets go of the gradients.

        Lightning would hold them until the next backward pass, next to all the activations.
        """
        super().optimizer_step(*args, **kwargs)
        if not self.sharded:
            self._loss.recycle(self.model)
        self.zero_grad(set_to_none=True)
        if self._first_step:
            # Compiling has left much behind, and the optimizer's state, made just now, lies among
            # what the first pass has freed.
            return_freed_memory()
            self._first_step = False

    # ---- measuring ----------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the sums."""
        inputs_BT, targets_BT = batch
        assert self.metrics is not None
        hidden_BTC = None if self.sharded else self.model.hidden(inputs_BT)
        # The logits of the whole batch would need more memory than all of training.
        rows = rows_at_once(self.gpt.vocab_size, self.device.type, compiled=False)
        windows = max(1, rows // inputs_BT.size(1))
        for start in range(0, len(inputs_BT), windows):
            some = slice(start, start + windows)
            if hidden_BTC is None:
                logits_BTV = self.model(inputs_BT[some])
            else:
                logits_BTV = self.model.unembed(hidden_BTC[some])
            self.metrics.update(logits_BTV, targets_BT[some])

    def on_validation_epoch_end(self) -> None:
        """Reports `val_loss`, `val_perplexity` and `val_bits_per_byte`."""
        self._report("val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the sums."""
        self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        """Reports `test_loss`, `test_perplexity` and `test_bits_per_byte`."""
        self._report("test")

    def _report(self, prefix: str) -> None:
        assert self.metrics is not None
        values = self.metrics.compute()
        self.metrics.reset()
        # For ModelCheckpoint and the callbacks. Not for the logger: Lightning would write it one
        # step to the left of the training curves, so TrainingCurves does.
        self.log_dict(
            {f"{prefix}_{name}": value.float() for name, value in values.items()},
            logger=False,
            sync_dist=True,  # equal in all processes already: compute() sums over them
        )

    # ---- telling ------------------------------------------------------------------------

    def storyteller(self) -> Storyteller:
        """What tells stories with the weights of this moment.

        Raises:
            ValueError: There is no tokenizer yet: it comes from the data or a checkpoint.
        """
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer; load it from a checkpoint")
        return Storyteller(self.model, self.tokenizer)

    def predict_step(self, batch: StoryRequest, batch_idx: int) -> str:
        """A story, for `Trainer.predict`; `slm predict` tells faster, without a Trainer."""
        return "".join(self.storyteller().generate(batch))

    # ---- checkpoints --------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Makes the checkpoint complete: tokenizer and the data's manifest, in plain types.

        Raises:
            UserError: A weight is not finite; the file that is there is kept.
        """
        parts = (p.to_local() if isinstance(p, DTensor) else p for p in self.model.parameters())
        finite = all(bool(part.isfinite().all()) for part in parts)
        if self.sharded:
            finite = self.trainer.strategy.reduce_boolean_decision(finite)
        if not finite:
            raise diverged("the weights are not finite", self.trainer.global_step)
        data = self._data()
        assert self.tokenizer is not None
        checkpoint[CHECKPOINT_KEY] = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer.to_plain(),
            "data": data.manifest.to_plain() if data else None,
            "training": self._training_facts(),
        }

    def _training_facts(self) -> dict[str, Any]:
        """What decides the course of a run besides the weights: compared on resuming."""
        data = self._data()
        facts = asdict(self.optimizer_options) | {
            "decay_steps": self._decay_steps(),
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "gradient_clip_val": self.trainer.gradient_clip_val,
            "precision": self.trainer.precision,
            "dropout": self.gpt.dropout,
            "processes": self.trainer.world_size,
        }
        if budget := time_budget(self.trainer):
            del facts["decay_steps"]  # what is expected of this machine, not what was asked for
            facts["budget"] = format_duration(budget.seconds)
        if data:
            facts |= {
                "batch_size": data.batch_size,
                "seed": data.seed,
                "order": data.order,
                "train.bin": data.manifest.splits["train"].sha256[:12],
            }
        return facts

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks that the data speak the checkpoint's vocabulary.

        Raises:
            UserError: They were tokenised otherwise.
        """
        saved = checkpoint[CHECKPOINT_KEY]["tokenizer"]
        if self.tokenizer is None:
            self.tokenizer = Tokenizer.from_plain(saved)
        path = Path(self.trainer.ckpt_path or "the checkpoint")
        Checkpoint(path, checkpoint).check_tokenizer(self.tokenizer.identity())
        if self.trainer.state.fn == "fit":
            align_progress(checkpoint, self.trainer.accumulate_grad_batches)
            before, now = checkpoint[CHECKPOINT_KEY]["training"], self._training_facts()
            changed = [
                f"{key} {before[key]} -> {now[key]}"
                for key in now
                if key in before and before[key] != now[key]
            ]
            if changed:
                step = checkpoint["global_step"]
                self._say(f"From step {step} on, unlike before: {', '.join(changed)}")
                for effect in dict.fromkeys(
                    EFFECTS[key] for key in EFFECTS if any(c.startswith(f"{key} ") for c in changed)
                ):
                    self._say(f"           {effect}")

    @rank_zero_only
    def _say(self, message: str) -> None:
        print(message, file=sys.stderr)

    def on_train_start(self) -> None:
        """Compiles; and on resuming, lets the options given now win over those in the checkpoint.

        Optimizer and LambdaLR restore their old settings; left at that, a new learning rate on the
        command line would be ignored without a word.
        """
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        assert isinstance(scheduler, LambdaLR)
        step = self.trainer.global_step
        scheduler.base_lrs = [options["lr"] for options in self._group_options]
        scheduler.last_epoch = step
        curve = scheduler.lr_lambdas[0]
        for group, options in zip(optimizer.param_groups, self._group_options, strict=True):
            group |= options | {"initial_lr": options["lr"], "lr": options["lr"] * curve(step)}
        self._first_step = True
        self._finite = FiniteGradients(self.skip_nonfinite)
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.compile_model:
            self._warm_up()

    def _warm_up(self) -> None:
        """Compiles forward and backward on a batch of zeros, so that no step has to wait for it."""
        data = self._data()
        if data is None:
            return
        started = time.perf_counter()
        zeros_BT = torch.zeros(
            data.batch_size, data.block_size, dtype=torch.int64, device=self.device
        )
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.trainer.precision_plugin.forward_context():
            # Two tensors: a graph compiled for one in both roles would not serve for a batch.
            loss = self.training_step((zeros_BT, zeros_BT.clone()), 0)
        torch.autograd.backward(loss)
        self.zero_grad(set_to_none=True)
        self._say(f"Compiled   in {time.perf_counter() - started:.0f} s")
