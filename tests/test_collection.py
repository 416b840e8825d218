"""Python's garbage collector while training."""

import gc

from slm.training.collection import QuietCollector


def test_no_collection_comes_by_itself_and_afterwards_all_is_as_before():
    collector, frozen = QuietCollector(interval=2), gc.get_freeze_count()
    collector.on_train_start()
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
    collector = QuietCollector(interval=2)
    collector.on_train_start()
    try:
        Cycle()
        collector.on_train_batch_end(None, None, None, None, 0)
        assert not gone
        collector.on_train_batch_end(None, None, None, None, 1)
        assert len(gone) == 1
        Cycle()
        collector.on_validation_start()
        assert len(gone) == 2
    finally:
        collector.teardown()


def test_a_collector_that_was_off_stays_off():
    collector = QuietCollector()
    gc.disable()
    try:
        collector.on_train_start()
        collector.teardown()
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
