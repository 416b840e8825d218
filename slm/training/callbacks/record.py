"""The record of a run: when it trained, on which machine, how fast, and the energy used."""

import sys
import time
from datetime import UTC, datetime
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from slm.data.datamodule import StoryData
from slm.files import json_text, replacing
from slm.hardware import describe_machine
from slm.training.callbacks.standard import describe_devices
from slm.training.energy import EnergyMeter
from slm.training.run_logger import run_of

_READ_EVERY = 10.0  # seconds


class RunRecord(Callback):
    """Writes `record.json` into a run's folder: one entry for each time it trained.

    The entry is written with each checkpoint, from which an interrupted run is resumed.
    """

    def __init__(self) -> None:
        self._entry: dict[str, Any] = {}
        self._before: list[Any] = []

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        device = trainer.strategy.root_device
        self._meter = EnergyMeter(device)
        self._begun = self._read_at = time.perf_counter()
        data = trainer.datamodule  # type: ignore[attr-defined]
        self._tokens = data.samples_trained() * data.block_size
        run = run_of(trainer)
        self._before = run.record_entries() if run else []
        self._entry = {
            "started": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "machine": describe_machine(device),
            "device": describe_devices(trainer),
            "precision": trainer.precision,
            "compiled": bool(getattr(pl_module, "compile_model", False)),
            "first_step": trainer.global_step,
        }

    @rank_zero_only
    def on_train_batch_end(self, *_: Any) -> None:
        now = time.perf_counter()
        if now - self._read_at >= _READ_EVERY:
            self._meter.read()
            self._read_at = now

    @rank_zero_only
    def on_save_checkpoint(self, trainer: Trainer, *_: Any) -> None:
        self._write(trainer)

    @rank_zero_only
    def on_train_end(self, trainer: Trainer, *_: Any) -> None:
        self._write(trainer)
        self._entry = {}

    on_exception = on_train_end  # type: ignore[assignment]

    def _write(self, trainer: Trainer) -> None:
        run = run_of(trainer)
        if not self._entry or run is None or not run.folder.is_dir():
            return
        self._meter.read()
        data: StoryData = trainer.datamodule  # type: ignore[attr-defined]
        entry = self._entry | {
            "seconds": round(time.perf_counter() - self._begun, 3),
            "last_step": trainer.global_step,
            "tokens": data.samples_trained() * data.block_size - self._tokens,
            "joules": {name: round(joules, 1) for name, joules in self._meter.joules.items()},
        }
        try:
            with replacing(run.record_path) as temporary:
                temporary.write_text(json_text([*self._before, entry]), "utf-8")
        except OSError as error:  # no reason to lose a checkpoint
            print(f"Record     not written: {error}", file=sys.stderr)
