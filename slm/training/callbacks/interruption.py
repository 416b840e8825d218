"""Signals take effect between two micro-batches, in all processes of a run at once."""

import signal
import sys
import threading
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed

from slm.errors import Stopped
from slm.processes import process_rank, run_is_over
from slm.signals import STOPPING, handled_by, raise_stopped


class Interruption(Callback):
    """While entered, delays a signal to stop until the next micro-batch.

    Python would raise at any point: between the halves of an optimizer step, whose weights would
    then be saved, or in a destructor, where it is lost. Here the first signal is noted and raised
    at the next micro-batch of training or validation; with several processes, when all of them
    know of it. A second signal ends the process at once, and so does one while no batches are
    running, after cleaning up.
    """

    def __init__(self) -> None:
        self.number = 0  # the signal that was received, if any
        self._running = False
        self._group: Any = None

    def __enter__(self) -> "Interruption":
        self._handlers = handled_by(self._note)
        self._handlers.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._handlers.__exit__(*error)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._running:
            self.number = number
            raise_stopped(number, frame)
        for each in STOPPING:  # from now on each of them ends the process
            if signal.getsignal(each) == self._note:
                signal.signal(each, signal.SIG_DFL)
        self.number = number
        if process_rank() == 0:
            print(
                f"\n{signal.Signals(number).name} received: stopping before the next micro-batch; "
                "once more stops at once.",
                file=sys.stderr,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning's handler of SIGTERM talks to the other processes itself.
        ours = threading.current_thread() is threading.main_thread()
        if ours and signal.getsignal(signal.SIGTERM) is not signal.SIG_IGN:
            signal.signal(signal.SIGTERM, self._note)
        if trainer.world_size > 1 and distributed.get_backend() != "gloo":
            # On the CPU: a GPU would have to finish its queued work before it could answer.
            self._group = distributed.new_group(backend="gloo")

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self._running = True
        number = self.number
        if trainer.world_size > 1:
            agreed = torch.tensor(self.number)
            distributed.all_reduce(agreed, distributed.ReduceOp.MAX, group=self._group)
            # A signal that was noted meanwhile, too late for this round, is not forgotten.
            number = int(agreed)
        if number:
            self.number = number
            run_is_over()
            raise Stopped(number)

    on_validation_batch_start = on_train_batch_start  # type: ignore[assignment]

    def on_train_end(self, *_: Any) -> None:
        self._running = False  # from here on a signal takes effect at once

    def on_exception(self, *_: Any) -> None:
        # While the last checkpoint is written, a second signal must still end the process.
        if self.number == signal.SIGINT:  # Lightning has just had it ignored
            signal.signal(signal.SIGINT, signal.SIG_DFL)
