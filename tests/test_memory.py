"""What a process keeps, gives back and has at most."""

import platform
import subprocess
import sys

import pytest
import torch

from slm.training.memory import keep_freed_memory, peak_memory

CODE = """
import torch
from pathlib import Path
from slm.training.memory import keep_freed_memory, return_freed_memory
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
{first}
before = resident()
for _ in range(3):
    torch.ones(16_000_000)
after = resident()
return_freed_memory()
print(after - before, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_freed_memory_stays_until_it_is_given_back():
    kept = {}
    for first in ("", "assert keep_freed_memory()"):
        done = subprocess.run(
            [sys.executable, "-c", CODE.format(first=first)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        kept[first] = [int(word) for word in done.stdout.split()]
    usual, ours = kept.values()
    assert usual[0] < 30e6
    assert ours[0] > 60e6, "a block of 64 MB is there for the next step"
    assert ours[1] < 30e6


def test_other_libraries_have_no_such_setting(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    assert not keep_freed_memory()


def test_the_peak_remembers_what_is_gone():
    before = peak_memory(torch.device("cpu"))
    size = before + 100_000_000
    torch.ones(size // 4)
    assert size <= peak_memory(torch.device("cpu")) < size + before + 200_000_000
