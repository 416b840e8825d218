"""Python's garbage collector while training."""

import gc

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from slm.training.callbacks.memory import ManualGarbageCollection


def begin(collector):
    collector.on_train_start()
    assert gc.get_freeze_count() == 0, "compiling comes first"
    collector.on_train_batch_end(None, None, None, None, 0)


def test_an_error_in_training_leaves_the_collector_as_it_was(tmp_path):
    class Failing(BoringModel):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                assert not gc.isenabled()
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        accelerator="cpu",
        max_steps=4,
        callbacks=[ManualGarbageCollection()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(Failing())
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_no_collection_comes_by_itself_and_afterwards_all_is_as_before():
    collector, frozen = ManualGarbageCollection(interval=2), gc.get_freeze_count()
    begin(collector)
    assert not gc.isenabled()
    assert gc.get_freeze_count() > frozen + 1000
    collector.teardown()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_garbage_goes_at_the_interval_and_at_validations():
    class Cycle:
        def __init__(self):
            self.itself = self

        def __del__(self):
            gone.append(1)

    gone: list[int] = []
    collector = ManualGarbageCollection(interval=2)
    begin(collector)
    try:
        Cycle()
        collector.on_train_batch_end(None, None, None, None, 2)
        assert not gone
        collector.on_train_batch_end(None, None, None, None, 3)
        assert len(gone) == 1
        Cycle()
        collector.on_validation_start()
        assert len(gone) == 2
    finally:
        collector.teardown()


def test_a_collector_that_was_off_stays_off():
    collector = ManualGarbageCollection()
    gc.disable()
    try:
        begin(collector)
        collector.teardown()
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
