"""TensorBoard's logger, in a folder that one process has claimed."""

import sys
import threading
from contextlib import suppress
from functools import partialmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from slm.files import free_space
from slm.processes import process_rank
from slm.training.runs import Run, RunClaim


class RunLogger(TensorBoardLogger):
    """Logs into the folder of a claimed run; a new run is claimed when its folder is first needed.

    Args:
        root: The folder of `lightning_logs`, for a new run.
        claim: The claim; used by the first process only.
        step: The step that a resumed run has reached. Points after it, logged by a process that was
            killed after its last checkpoint, will be logged again and are purged.
    """

    def __init__(self, root: Path, claim: RunClaim, step: int) -> None:
        self._claim = claim
        resumed = claim.folder
        super().__init__(
            resumed.parent.parent if resumed else root,
            name=resumed.parent.name if resumed else "lightning_logs",
            version=resumed.name if resumed else None,
            default_hp_metric=False,
            purge_step=step + 1 if resumed else None,
        )

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer."""
        writer = super().experiment
        files = getattr(writer, "file_writer", None)
        if files is not None and not isinstance(files.event_writer, LastingEvents):
            files.event_writer = LastingEvents(files.event_writer, Path(self.log_dir))
        return writer

    def save(self) -> None:
        """Writes `hparams.yaml`, which nothing depends on."""
        with suppress(OSError):
            super().save()

    @property
    def version(self) -> str:
        """The folder's name."""
        if self._version is None:
            first = process_rank() == 0
            self._version = self._claim.create(Path(self.root_dir)).name if first else "unknown"
        return str(self._version)


class LastingEvents:
    """TensorBoard's event files; if they cannot be written, training continues without curves.

    On a full disk the writer's thread dies with a traceback, and every later call raises.
    """

    def __init__(self, writer: Any, folder: Path) -> None:
        self._writer: Any = writer
        self._folder = folder
        show = threading.excepthook

        def show_others(failure: threading.ExceptHookArgs) -> None:
            in_writer = type(failure.thread).__module__.startswith("tensorboard.")
            if not (in_writer and isinstance(failure.exc_value, OSError)):
                show(failure)

        threading.excepthook = show_others

    def _call(self, method: str, *arguments: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, method)(*arguments)
        except OSError as error:
            self._writer = None
            print(
                f"Warning    no more curves: {self._folder} cannot be written: "
                f"{error.strerror or error}; {free_space(self._folder)}",
                file=sys.stderr,
            )

    add_event = partialmethod(_call, "add_event")
    flush = partialmethod(_call, "flush")
    close = partialmethod(_call, "close")

    def get_logdir(self) -> str:
        """The folder."""
        return str(self._folder)


def run_of(trainer: Trainer) -> Run | None:
    """The run that a Trainer logs into, if it logs.

    Not `trainer.log_dir`, which all processes must ask for together.
    """
    logger = trainer.loggers[0] if trainer.loggers else None
    folder = getattr(logger, "log_dir", None)
    return Run(Path(folder)) if folder else None
