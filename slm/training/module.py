"""The LightningModule: how a GPT is trained and measured."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from slm.data.batches import Batch
from slm.data.datamodule import StoryData
from slm.data.tokenizer import CHECKPOINT_KEY, Tokenizer
from slm.generation.storyteller import StoryRequest, Storyteller
from slm.hardware import widest_float
from slm.model import GPT, GPTConfig
from slm.training.callbacks.time_budget import format_duration, time_budget
from slm.training.checkpoint import (
    FORMAT_VERSION,
    Checkpoint,
    check_vocabulary_size,
    open_checkpoint,
)
from slm.training.cluster import shard
from slm.training.finite import FiniteGradients, check_weights
from slm.training.loss import NextTokenLoss, rows_at_once
from slm.training.metrics import LanguageModelMetrics
from slm.training.optimization import OptimizerOptions, learning_rate_curve, make_optimizer
from slm.training.precision import can_fuse
from slm.training.resuming import apply_options, prepare_to_resume, seed_generators


class StoryModel(LightningModule):
    """A GPT and its training step.

    Args:
        gpt: Shape of the network.
        optimizer: Optimizer and learning-rate schedule.
        compile: Whether to train through torch.compile; costs a minute, pays on GPUs.
        init_from: A checkpoint whose weights to start from, with a fresh optimizer and schedule;
            the data must be in its vocabulary. Not saved in the model's own checkpoints.
        skip_nonfinite: Whether a step whose gradient is not finite is skipped and training
            continues. Otherwise it stops there. On a GPU this costs a synchronisation per step.
        grad_checkpointing: Activation checkpointing: keep only each block's input, and recompute
            the rest in the backward pass. Less memory, a third more time.
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
        self.skip_nonfinite = skip_nonfinite
        # Plain types only: a checkpoint must open with weights_only=True.
        self.save_hyperparameters(
            {
                "gpt": gpt.to_plain(),
                "optimizer": asdict(optimizer),
                "compile": compile,
                "grad_checkpointing": grad_checkpointing,
                "skip_nonfinite": skip_nonfinite,
            }
        )
        self.model = GPT(gpt)
        self.model.recompute = grad_checkpointing
        self.metrics: LanguageModelMetrics | None = None
        self.tokenizer: Tokenizer | None = None
        self.grad_norm: Tensor | None = None
        self.origin: str | None = None
        self._loss = NextTokenLoss()

    # ---- set-up -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Takes the tokenizer from the data, and the initial weights from `init_from`.

        Raises:
            UserError: The model's vocabulary is not the data's, or `init_from` does not fit.
        """
        data = self.data
        if data is None:
            return
        self.tokenizer = data.tokenizer
        if stage == "fit" and self.init_from:
            checkpoint = open_checkpoint(Path(self.init_from).expanduser())
            checkpoint.check_tokenizer(self.tokenizer.identity())
            checkpoint.check_shape(self.gpt)
            self.model.load_state_dict(checkpoint.make_model().state_dict())
            earlier = checkpoint.entry.get("origin") or "trained from scratch"
            self.origin = f"fine-tuned from {checkpoint.label} ({earlier})"
        check_vocabulary_size(self.tokenizer.n_vocab, self.gpt.vocab_size)
        self.metrics = LanguageModelMetrics(
            self.tokenizer.byte_lengths(), widest_float(self.trainer.strategy.root_device.type)
        )
        if self.compile_model and stage == "fit":
            self._loss = NextTokenLoss(compile=True)

    @property
    def data(self) -> StoryData | None:
        """The data module that feeds it, if there is one."""
        data = getattr(self._trainer, "datamodule", None)
        return data if isinstance(data, StoryData) else None

    @property
    def sharded(self) -> bool:
        """Whether each process holds a part of every weight (FSDP2)."""
        return isinstance(self.model, FSDPModule)

    def configure_model(self) -> None:
        """Shards the network, if the strategy is FSDP2.

        Raises:
            UserError: The optimizer or torch.compile needs whole weights.
        """
        if self.sharded or not isinstance(self.trainer.strategy, ModelParallelStrategy):
            return
        assert self.device_mesh is not None
        shard(self.model, self.device_mesh, self.optimizer_options.name, self.compile_model)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW, or Muon with it, and a LambdaLR: linear warm-up, then decay to a floor."""
        fused = can_fuse(str(self.trainer.precision), self.device.type)
        optimizer = make_optimizer(self.model, self.optimizer_options, fused=fused)
        # A checkpoint that is resumed restores its own; `on_train_start` applies these.
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
        curve = learning_rate_curve(self.optimizer_options, self.decay_steps)
        budget = time_budget(self.trainer)
        return curve if budget is None else lambda step: curve(budget.position())

    @property
    def decay_steps(self) -> int:
        """The step at which the learning rate reaches its floor."""
        if budget := time_budget(self.trainer):
            return budget.steps
        return self.optimizer_options.decay_steps or self.trainer.max_steps

    # ---- training -----------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Applies the options given now, which on resuming override the checkpoint's."""
        optimizer, scheduler = self.optimizers(use_pl_optimizer=False), self.lr_schedulers()
        assert isinstance(optimizer, Optimizer)
        assert isinstance(scheduler, LambdaLR)
        apply_options(optimizer, scheduler, self._group_options, self.trainer.global_step)
        self._finite = FiniteGradients(self.skip_nonfinite)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seeds dropout as a function of the position in the data, so that resuming is exact."""
        if data := self.data:
            micro_batch = batch_idx % self.trainer.accumulate_grad_batches
            seed_generators(self.device, data.dropout_seed(micro_batch))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of a batch, in nats per token; `IGNORED` targets count as 0."""
        if self.sharded:  # FSDP2 gathers the weights when the whole network is called
            inputs_BT, targets_BT = batch
            logits_NV, targets_N = self.model(inputs_BT).flatten(0, 1), targets_BT.flatten()
            return F.cross_entropy(logits_NV, targets_N, reduction="sum") / len(targets_N)
        try:
            return self._loss(self.model, *batch)
        except TorchDynamoException as error:
            rank_zero_warn(
                "torch.compile does not work on this machine; training continues without it "
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
        """Clips by total norm, and keeps the norm from before for the curves.

        Done here because Lightning refuses to clip with a fused optimizer in mixed precision. A
        GradScaler has unscaled the gradients before this is called.
        """
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = get_total_norm(gradients)
        self.grad_norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)  # skips steps itself
        if scaler is None and not self._finite.check(self.grad_norm, self.trainer.global_step + 1):
            self.zero_grad(set_to_none=True)  # optimizers skip parameters without a gradient
            return
        if gradient_clip_val:
            clip_grads_with_norm_(self.model.parameters(), gradient_clip_val, norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Takes the step and frees the gradients, which Lightning keeps until the next backward."""
        super().optimizer_step(*args, **kwargs)
        if not self.sharded:
            self._loss.recycle(self.model)
        self.zero_grad(set_to_none=True)

    def release_memory(self) -> None:
        """Frees the loss's buffers; after an error Lightning does not call `on_train_end`."""
        self._loss.release()

    on_train_end = release_memory

    # ---- measuring ----------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the sums, a few windows' logits at a time."""
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

    test_step = validation_step

    def on_validation_epoch_end(self) -> None:
        """Reports `val_loss`, `val_perplexity` and `val_bits_per_byte`; in a test `test_…`."""
        assert self.metrics is not None
        values = self.metrics.compute()
        self.metrics.reset()
        prefix = "test" if self.trainer.testing else "val"
        # For ModelCheckpoint and the callbacks. Not for the logger: Lightning would write it one
        # step to the left of the training curves, so TrainingCurves does.
        self.log_dict(
            {f"{prefix}_{name}": value.float() for name, value in values.items()},
            logger=False,
            sync_dist=True,  # equal in all processes already: compute() sums over them
        )

    on_test_epoch_end = on_validation_epoch_end

    # ---- stories ------------------------------------------------------------------------

    def storyteller(self) -> Storyteller:
        """Generates stories with the current weights.

        Raises:
            ValueError: There is no tokenizer yet: it comes from the data or a checkpoint.
        """
        if self.tokenizer is None:
            raise ValueError("the model has no tokenizer; load it from a checkpoint")
        return Storyteller(self.model, self.tokenizer)

    def predict_step(self, batch: StoryRequest, batch_idx: int) -> str:
        """A story, for `Trainer.predict`; `slm predict` is faster, without a Trainer."""
        return "".join(self.storyteller().generate(batch))

    # ---- checkpoints --------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Completes the checkpoint with tokenizer, data manifest and training options.

        Raises:
            UserError: A weight is not finite; the earlier file is kept.
        """
        check_weights(self.model, self.trainer, self.sharded)
        assert self.tokenizer is not None
        checkpoint[CHECKPOINT_KEY] = {
            "format_version": FORMAT_VERSION,
            "tokenizer": self.tokenizer.to_plain(),
            "data": self.data.manifest.to_plain() if self.data else None,
            "training": self._training_options(),
            "origin": self.origin,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checks the vocabulary; on resuming, reports which options have changed.

        Raises:
            UserError: The data are in another vocabulary.
        """
        if self.tokenizer is None:
            self.tokenizer = Tokenizer.from_plain(checkpoint[CHECKPOINT_KEY]["tokenizer"])
        path = Path(self.trainer.ckpt_path or "the checkpoint")
        Checkpoint(path, checkpoint).check_tokenizer(self.tokenizer.identity())
        self.origin = checkpoint[CHECKPOINT_KEY].get("origin")
        if self.trainer.state.fn == "fit":
            micro_batches = self.trainer.accumulate_grad_batches
            prepare_to_resume(checkpoint, self._training_options(), micro_batches)

    def _training_options(self) -> dict[str, Any]:
        """What determines the course of a run besides the weights; compared on resuming."""
        options = asdict(self.optimizer_options) | {
            "decay_steps": self.decay_steps,
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
            "gradient_clip_val": self.trainer.gradient_clip_val,
            "precision": self.trainer.precision,
            "dropout": self.gpt.dropout,
            "processes": self.trainer.world_size,
        }
        if budget := time_budget(self.trainer):
            del options["decay_steps"]  # an estimate for this machine, not an option
            options["budget"] = format_duration(budget.seconds)
        if data := self.data:
            options |= {
                "batch_size": data.batch_size,
                "seed": data.seed,
                "order": data.order,
                "train.bin": data.manifest.splits["train"].sha256[:12],
            }
        return options
