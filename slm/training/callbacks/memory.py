"""Memory of a training process: reused between steps."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from slm.training.memory import keep_freed_memory, return_freed_memory


class ReuseMemory(Callback):
    """Keeps freed memory for the next step on a CPU, and cleans up after the first step.

    Compiling leaves much garbage, and the optimizer's state, allocated in the first step, is spread
    over what the first pass has freed.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sets up the C library's allocator."""
        self._first_step = trainer.global_step
        if pl_module.device.type == "cpu":
            keep_freed_memory()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Returns free memory after the first step."""
        if trainer.global_step == self._first_step + 1:
            self._first_step = -1
            return_freed_memory()
