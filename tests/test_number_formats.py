"""Matrices are multiplied in formats that the machine has instructions for, whatever it is."""

import re
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slm import hardware
from slm.bench import training_speed, variants
from slm.training.module import StoryModel

PRODUCT = re.compile(r"mm(_|$)|mv$|dot$|matmul|linear|attention|convolution|bilinear|einsum")
TINY = """
  --data.source stories.txt --data.tokenizer bpe --data.vocab_size 300 --model.gpt.vocab_size 300
  --data.validation_share 0.2 --data.batch_size 4 --trainer.max_steps 3 --val_interval 2
  --trainer.log_every_n_steps 1 --trainer.accelerator cpu --model.compile false
"""


class Products(TorchDispatchMode):
    """Counts matrix products by operator and number format, while it is watching."""

    def __init__(self):
        super().__init__()
        self.found = Counter()
        self.watching = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if self.watching and PRODUCT.search(name):
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)]
            # Products with int8 are their own kind, which every CPU has.
            if not any(tensor.dtype == torch.int8 for tensor in tensors):
                # What follows the factors may be of another format: a softmax's sums, for example.
                self.found.update((name, tensor.dtype) for tensor in tensors[:2])
        return func(*args, **kwargs or {})

    def formats(self):
        return {dtype for _, dtype in self.found if dtype.is_floating_point}


@pytest.fixture
def products():
    with Products() as mode:
        yield mode


@pytest.fixture
def bfloat16(monkeypatch, request):
    """Whether this CPU is said to multiply bfloat16."""
    monkeypatch.setattr(hardware, "_cpu_multiplies_bfloat16", lambda: request.param)


class WorkerHere:
    """In place of a process that trains in turns: two steps, at once, in this thread."""

    def __init__(self, arm, training, place, tmp_path):
        turns = [1, 1, None]

        class Line:
            recv = staticmethod(lambda: turns.pop(0))
            send = staticmethod(lambda seconds: None)

        variants.VARIANTS[arm](training, variants.Rounds(Line, "cpu"), place or tmp_path)

    def train(self, steps):
        return 1.0

    def finish(self):
        return {"peak": 0, "parts": None}

    def kill(self):
        pass


def run(slm, *words):
    result = slm(*words)
    assert result.status == 0, result.err
    return result.err


FIT = {
    "quickstart": ["--config", "configs/quickstart.yaml", *TINY.split()],
    "small": ["--config", "configs/small.yaml", *TINY.split(), "--model.gpt.block_size", "64"],
}


def check_float32(products, words, some=True):
    """Nothing but float32 has been multiplied since the last call; `some` has."""
    assert products.formats() == ({torch.float32} if some else set()), (words, products.found)
    products.found.clear()


@pytest.mark.parametrize("bfloat16", [False], indirect=True)
@pytest.mark.parametrize("config", FIT)
def test_without_bfloat16_nothing_is_multiplied_in_16_bits(slm, products, bfloat16, config):
    device = ["--trainer.accelerator", "cpu"]
    for words in (
        ["fit", *FIT[config]],
        ["validate", *device],
        ["predict", "--max_new_tokens", "5", *device],
        ["evaluate", "--stories", "10", "--loss_tokens", "100", *device],
        ["report"],
        ["plot"],
    ):
        run(slm, *words)
        check_float32(products, words)


@pytest.mark.parametrize("bfloat16", [False], indirect=True)
def test_nor_do_the_benchmarks_and_plans(slm, products, bfloat16, monkeypatch, tmp_path):
    def worker(arm, training, place):
        return WorkerHere(arm, training, place, tmp_path)

    monkeypatch.setattr(training_speed, "_Worker", worker)
    device = ["--trainer.accelerator", "cpu"]
    fit = ["fit", *FIT["quickstart"], "--report", "false"]
    in_time = [word for word in fit if word not in ("--trainer.max_steps", "3")]
    small = ["--batch_size", "2", "--block_size", "32", "--compile", "false"]
    for words in (
        fit,
        ["bench", "generate", "--tokens", "2", "--repeats", "1", "--cold", "false", *device],
        ["bench", "train", *small, "--repeats", "1", "--steps", "1", *device],
        [*in_time, "--budget", "1s"],
    ):
        said = run(slm, *words)
        assert ("Left out   bf16" in said) == ("generate" in words)
        check_float32(products, words)


@pytest.mark.parametrize("bfloat16", [False], indirect=True)
def test_a_format_that_is_not_native_is_named(slm, bfloat16):
    for precision, named in (("bf16-mixed", True), ("32-true", False), ("auto", False)):
        said = run(slm, "fit", "--config", "tiny.yaml", "--trainer.precision", precision)
        assert ("Slow       bf16-mixed is not native on this cpu" in said) == named


@pytest.mark.parametrize("bfloat16", [True], indirect=True)
def test_with_bfloat16_training_multiplies_in_it(slm, products, bfloat16, monkeypatch):
    """Forward, backward, and Muon's products."""
    products.watching = False
    step = StoryModel.optimizer_step

    def watched_step(self, *args, **kwargs):
        products.watching = True
        step(self, *args, **kwargs)
        products.watching = False

    monkeypatch.setattr(StoryModel, "optimizer_step", watched_step)
    run(slm, "fit", *FIT["quickstart"], "--report", "false", "--model.gpt.n_embd", "32")
    assert {name for name, _ in products.found} >= {"mm", "bmm", "baddbmm"}
    assert products.formats() == {torch.bfloat16}, products.found
