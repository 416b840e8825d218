"""Compilation before the first step."""

import sys
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from slm.training.module import StoryModel


class CompileAtStart(Callback):
    """Compiles both passes on a batch of zeros; changes neither weights nor random state."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, StoryModel)
        data, device = pl_module.data, pl_module.device
        if data is None or not pl_module.compile_model:
            return
        started = time.perf_counter()
        zeros_BT = torch.zeros(data.batch_size, data.block_size, dtype=torch.int64, device=device)
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.precision_plugin.forward_context():
            # Two tensors: a graph compiled for one in both roles would not fit a batch.
            loss = pl_module.training_step((zeros_BT, zeros_BT.clone()), 0)
        torch.autograd.backward(loss)
        pl_module.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        rank_zero_only(print)(f"Compiled   in {seconds:.0f} s", file=sys.stderr)
