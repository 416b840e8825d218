"""Ctrl-C takes effect at a batch, and nowhere else."""

import os
import signal

import pytest

from slm.training.interruption import Interruption


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_the_first_is_noted_and_raised_at_the_next_batch(capsys):
    with Interruption() as interruption:
        interruption.on_train_batch_start()
        press()
        assert "Stopping before the next batch" in capsys.readouterr().err
        with pytest.raises(KeyboardInterrupt):
            interruption.on_validation_batch_start()


def test_the_second_is_raised_at_once():
    with Interruption() as interruption:
        interruption.on_train_batch_start()
        press()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_where_no_batches_run_it_is_raised_at_once():
    with Interruption() as interruption:
        with pytest.raises(KeyboardInterrupt):
            press()
        interruption.on_train_batch_start()
        interruption.on_train_end()
        with pytest.raises(KeyboardInterrupt):
            press()


def test_the_old_handler_is_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
