"""Checkpoint files are written completely or not at all."""

import os
import sys
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from slm.errors import CheckpointError
from slm.files import free_space, replacing

OnFailure = Literal["stop", "continue"]
"""What to do when a checkpoint cannot be written."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target and moves the file into place when it is complete.

    Lightning writes into the folder for temporary files: if that is another file system, the last
    step is a copy, and a run killed during it has no checkpoint.
    """

    def __init__(self, on_failure: OnFailure = "stop") -> None:
        self.on_failure = on_failure
        self.failed = False  # whether the last checkpoint could not be written

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        """Writes a checkpoint to `path`, atomically.

        Raises:
            CheckpointError: It cannot be written, and training must stop then.
        """
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target) as temporary:
                torch.save(checkpoint, temporary)
            self.failed = False
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter
            self.failed = True
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            found = f"the checkpoint {target} cannot be written: {reason}; {free_space(target)}"
            if self.on_failure == "continue":
                print(f"Warning    {found}. Training continues.", file=sys.stderr)
                return
            raise CheckpointError(
                found,
                "a writable folder with enough free space; an earlier checkpoint is kept",
                "make room, or train elsewhere: --trainer.default_root_dir FOLDER; with "
                "--on_save_error continue training does not stop for that",
            ) from error
