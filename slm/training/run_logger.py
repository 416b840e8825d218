"""TensorBoard's logger, in a folder that belongs to one process."""

import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from slm.files import free_space
from slm.processes import process_rank
from slm.training.runs import RunClaim


class RunLogger(TensorBoardLogger):
    """Logs into the folder of a claimed run, and claims the next one when it is first asked.

    Args:
        root: Where `lightning_logs` is, for a new run.
        claim: The claim; in a process that is not the first it stays empty, and unused.
        step: The step that a resumed run has reached. Points after it, from a process that was
            killed after its last checkpoint, are going to be logged again.
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
    """TensorBoard's event files, whose failure costs the curves and not the run.

    On a full disk the writer's thread dies with a traceback, and every later call raises.

    Args:
        writer: TensorBoard's `EventFileWriter`.
        folder: Where it writes.
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

    def add_event(self, event: Any) -> None:
        """Writes an event."""
        self._call("add_event", event)

    def flush(self) -> None:
        """Writes out what is in memory."""
        self._call("flush")

    def close(self) -> None:
        """Closes the file."""
        self._call("close")

    def get_logdir(self) -> str:
        """The folder."""
        return str(self._folder)
