"""Training as a system: accumulation, clipping, callbacks, checkpoints."""

import shutil
from dataclasses import replace

import pytest
import torch
from conftest import make_stories
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from slm.data.datamodule import StoryData
from slm.errors import UserError
from slm.generation import SamplingOptions
from slm.generation.storyteller import StoryRequest
from slm.model import GPTConfig
from slm.training.callbacks.checkpoints import BestCheckpoint, LastCheckpoint
from slm.training.callbacks.compiling import CompileAtStart
from slm.training.callbacks.curves import TrainingCurves
from slm.training.callbacks.memory import ReuseMemory
from slm.training.callbacks.progress import ProgressLine
from slm.training.callbacks.stories import SampledStories
from slm.training.callbacks.validation import LastStep
from slm.training.checkpoint import open_checkpoint
from slm.training.checkpoint_io import AtomicCheckpointIO
from slm.training.module import StoryModel
from slm.training.optimization import OptimizerOptions

GPT = GPTConfig(block_size=16, vocab_size=300, n_layer=2, n_head=2, n_embd=16, dropout=0.0)
OPTIMIZER = OptimizerOptions(lr=0.01, warmup_steps=3)


@pytest.fixture
def make_data(stories_txt, tmp_path):
    def make(**options):
        options = {"batch_size": 4, "block_size": 16, "vocab_size": 300} | options
        return StoryData(
            source=str(stories_txt),
            root=str(tmp_path / "data"),
            tokenizer="bpe",
            validation_share=0.2,
            **options,
        )

    return make


def make_trainer(tmp_path, steps=8, callbacks=(), **options):
    options = {
        "val_check_interval": 4 * options.get("accumulate_grad_batches", 1),
        "gradient_clip_val": 1.0,
        "logger": False,
        "enable_checkpointing": any(isinstance(c, LastCheckpoint) for c in callbacks),
    } | options
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=2,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        **options,
    )


def make_model(gpt=GPT, optimizer=OPTIMIZER, **options):
    torch.manual_seed(0)
    return StoryModel(gpt, optimizer, **options)


def weights(model):
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def train(tmp_path, data, steps=8, callbacks=(), ckpt_path=None, model=None, **options):
    model = model or make_model()
    trainer = make_trainer(tmp_path, steps, callbacks, **options)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path, weights_only=True)
    return model


def test_training_lowers_the_loss(tmp_path, make_data):
    curves = TrainingCurves()
    first = {}

    class First(Callback):
        def on_train_batch_end(self, *_):
            first.setdefault("loss", curves.latest.get("train_loss"))
            if first["loss"] is None:
                del first["loss"]

    train(tmp_path, make_data(), 60, [curves, First()])
    assert first["loss"] > 5
    assert curves.latest["train_loss"] < first["loss"] - 1.5
    assert curves.latest["tokens_seen"] == 60 * 4 * 16
    assert curves.latest["tokens_per_second"] > 0


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 2), (2, 4)])
def test_accumulated_equals_one_large_batch(tmp_path, make_data, batch, accumulate):
    large = weights(train(tmp_path, make_data(batch_size=8)))
    small = weights(
        train(tmp_path, make_data(batch_size=batch), accumulate_grad_batches=accumulate)
    )
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)
    other = weights(train(tmp_path, make_data(batch_size=8, seed=3)))
    assert not torch.allclose(other["blocks.0.mlp.up.weight"], large["blocks.0.mlp.up.weight"])


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 2), (2, 4)])
def test_the_training_loss_is_a_mean_over_micro_batches(tmp_path, make_data, batch, accumulate):
    large, small = TrainingCurves(), TrainingCurves()
    train(tmp_path, make_data(batch_size=8), callbacks=[large])
    data = make_data(batch_size=batch)
    train(tmp_path, data, callbacks=[small], accumulate_grad_batches=accumulate)
    for name in ("train_loss", "grad_norm", "lr", "tokens_seen"):
        assert small.latest[name] == pytest.approx(large.latest[name], rel=1e-4), name


def test_the_learning_rate_logged_is_that_of_the_step(tmp_path, make_data):
    curves, logged = TrainingCurves(), {}

    class Read(Callback):
        def on_train_batch_end(self, trainer, *_):
            logged[trainer.global_step] = curves.latest.get("lr")

    model = train(tmp_path, make_data(), 8, [curves, Read()])
    curve = model._schedule()
    assert [logged[step] for step in (2, 4, 8)] == pytest.approx(
        [0.01 * curve(step - 1) for step in (2, 4, 8)]
    )


def test_accumulation_counts_optimizer_steps(tmp_path, make_data):
    """Schedule, curves and `max_steps` count steps, not micro-batches."""
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    train(tmp_path, make_data(), 8, [Rates()], accumulate_grad_batches=3)
    assert len(rates) == 8
    assert rates[:3] == pytest.approx([0.01 / 3, 0.02 / 3, 0.01])
    assert rates[-1] < 0.003


def test_deleting_every_watcher_changes_no_weight(tmp_path, make_data):
    gpt = GPTConfig(16, 300, 2, 2, 16, dropout=0.3)  # any draw from the random state would show
    curves = TrainingCurves()
    watched = [curves, SampledStories(), LastStep(), ProgressLine(curves), BestCheckpoint()]
    watched.append(LastCheckpoint(3))
    bare = weights(train(tmp_path / "a", make_data(), model=make_model(gpt)))
    seen = weights(train(tmp_path / "b", make_data(), callbacks=watched, model=make_model(gpt)))
    for name, value in bare.items():
        assert torch.equal(value, seen[name]), name


def test_gradients_are_clipped_to_the_norm_and_the_norm_is_kept(tmp_path, make_data):
    norms = []

    class Norms(Callback):
        def on_train_start(self, trainer, module):
            def look(*_):
                gradients = [p.grad for p in module.parameters()]
                clipped = torch.nn.utils.get_total_norm(gradients).item()
                norms.append((module.grad_norm.item(), clipped))

            trainer.optimizers[0].register_step_post_hook(look)

    train(tmp_path, make_data(), 6, [Norms()], gradient_clip_val=0.1)
    assert len(norms) == 6
    for before, after in norms:
        assert before > 0.1
        assert after == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_fused_optimizer_is_clipped_in_mixed_precision(tmp_path, make_data, precision):
    """Lightning alone refuses this combination."""
    model = train(tmp_path, make_data(), 3, precision=precision)
    assert model.optimizers(use_pl_optimizer=False).defaults["fused"] is True
    assert model.grad_norm.item() > 0


class StopAt(Callback):
    """Interrupts a run as an error would, before or after a given micro-batch's step."""

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if batch_idx == self.batch:
            raise RuntimeError("interrupted")


RESUMABLE = OptimizerOptions(lr=0.01, warmup_steps=3, decay_steps=20)


def checkpointers():
    return [LastStep(), BestCheckpoint(), LastCheckpoint(5)]


def run_in(folder, data, steps, ckpt_path=None, callbacks=(), recipe=(GPT, RESUMABLE), **options):
    return train(
        folder, data, steps, [*callbacks, *checkpointers()], ckpt_path,
        make_model(*recipe), **options,
    )  # fmt: skip


MODERN = (
    GPTConfig(
        16, 300, 2, 2, 16, 0.0,
        position="rotary", norm="rms", qk_norm=True, mlp="swiglu",
    ),
    OptimizerOptions(
        name="muon", lr=0.02, muon_lr=0.012, schedule="trapezoid", cooldown_share=1.0,
        min_lr_ratio=0.0, warmup_steps=3, decay_steps=20,
    ),
)  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
# The GradScaler skips steps until it has found its factor.
@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step")
@pytest.mark.parametrize("recipe", [(GPT, OPTIMIZER), MODERN], ids=["classic", "modern"])
def test_fp16_trains_with_clipping(tmp_path, make_data, recipe):
    model = make_model(*recipe)
    trainer = Trainer(
        accelerator="gpu", devices=1, precision="16-mixed", max_steps=5, gradient_clip_val=1.0,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=-1,
        enable_model_summary=False, check_val_every_n_epoch=None, val_check_interval=5,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=make_data())
    assert not any(g.get("fused") for g in model.optimizers(use_pl_optimizer=False).param_groups)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_modern_recipe_resumed_equals_uninterrupted(tmp_path, make_data, accumulate):
    """With epochs of 75 windows, so that the second begins after the interruption at step 10."""
    options = {"accumulate_grad_batches": accumulate, "recipe": MODERN}

    def data():
        return make_data(order="epochs")

    whole = weights(run_in(tmp_path / "whole", data(), 20, **options))
    stop = StopAt(10 * accumulate)
    with pytest.raises(RuntimeError, match="interrupted"):
        run_in(tmp_path / "parts", data(), 20, callbacks=[stop], **options)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert open_checkpoint(last).step == 10
    resumed = weights(run_in(tmp_path / "parts", data(), 20, last, **options))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    other = weights(run_in(tmp_path / "other", make_data(order="random"), 20, **options))
    assert not torch.equal(other["blocks.0.mlp.up.weight"], whole["blocks.0.mlp.up.weight"])


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 2), (2, 4)])
def test_the_modern_recipe_accumulated_equals_one_large_batch(
    tmp_path, make_data, batch, accumulate
):
    """In its gradients, to rounding; Muon magnifies that, so what follows is compared by loss."""

    class Watch(Callback):
        def __init__(self):
            self.gradients, self.curves = [], TrainingCurves()

        def on_before_optimizer_step(self, trainer, module, optimizer):
            if not self.gradients:
                self.gradients = [p.grad.clone() for p in module.model.parameters()]

    large, small = Watch(), Watch()
    data = {"order": "epochs"}
    train(
        tmp_path / "a", make_data(batch_size=8, **data), 8, [large, large.curves],
        model=make_model(*MODERN),
    )  # fmt: skip
    train(
        tmp_path / "b", make_data(batch_size=batch, **data), 8, [small, small.curves],
        model=make_model(*MODERN), accumulate_grad_batches=accumulate,
    )  # fmt: skip
    torch.testing.assert_close(small.gradients, large.gradients, rtol=1e-4, atol=1e-6)
    for name in ("train_loss", "lr", "tokens_seen"):
        assert small.curves.latest[name] == pytest.approx(large.curves.latest[name], rel=2e-3), name


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_what_was_compiled_before_the_first_step_serves_for_all(tmp_path, make_data):
    """No step of a run waits for the compiler, nor does a validation."""
    from torch._dynamo.utils import counters

    seen = []

    class Compiled(Callback):
        def on_train_batch_end(self, *_):
            seen.append(counters["stats"]["unique_graphs"])

    torch._dynamo.reset()
    counters.clear()
    callbacks = [CompileAtStart(), Compiled()]
    train(tmp_path, make_data(), 8, callbacks, model=make_model(*MODERN, compile=True))
    assert seen == [2] * 8, "the network and the softmax"


def test_memory_is_returned_after_the_first_step_only(tmp_path, make_data, monkeypatch):
    returned = []

    class Steps(Callback):
        def on_train_batch_end(self, trainer, *_):
            returned.append(trainer.global_step)

    module = "slm.training.callbacks.memory"
    monkeypatch.setattr(f"{module}.keep_freed_memory", lambda: returned.append("keep"))
    monkeypatch.setattr(f"{module}.return_freed_memory", lambda: returned.append("return"))
    callbacks = [ReuseMemory(), Steps()]
    train(tmp_path, make_data(), 3, callbacks, accumulate_grad_batches=2)
    assert returned == ["keep", 0, "return", 1, 1, 2, 2, 3]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_resumed_equals_uninterrupted(tmp_path, make_data, accumulate):
    """After a finished shorter run."""
    options = {"accumulate_grad_batches": accumulate}
    whole = weights(run_in(tmp_path / "whole", make_data(), 20, **options))
    run_in(tmp_path / "parts", make_data(), 10, **options)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert open_checkpoint(last).step == 10
    resumed = weights(run_in(tmp_path / "parts", make_data(), 20, last, **options))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


def test_float16_resumed_equals_uninterrupted(tmp_path, make_data):
    """With dropout and a GradScaler, whose scale is part of the checkpoint."""

    def run(folder, steps, last=None):
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=5))
        recipe = (replace(GPT, dropout=0.1), RESUMABLE)
        options = {"accumulate_grad_batches": 2, "plugins": [plugin]}
        return weights(run_in(folder, make_data(), steps, last, recipe=recipe, **options))

    whole = run(tmp_path / "whole", 20)
    run(tmp_path / "parts", 10)
    resumed = run(tmp_path / "parts", 20, tmp_path / "parts" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert all(value.isfinite().all() for value in whole.values())


@pytest.mark.parametrize("batch", [30, 31, 32, 34])
def test_resumed_after_an_interruption_anywhere_in_an_accumulation(tmp_path, make_data, batch):
    options = {"accumulate_grad_batches": 3}
    whole = weights(run_in(tmp_path / "whole", make_data(), 20, **options))
    with pytest.raises(RuntimeError, match="interrupted"):
        run_in(tmp_path / "parts", make_data(), 20, callbacks=[StopAt(batch)], **options)
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert open_checkpoint(last).step == batch // 3
    resumed = weights(run_in(tmp_path / "parts", make_data(), 20, last, **options))
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


class StopInValidation(Callback):
    """Interrupts a run in the second batch of its second validation, within the forward pass."""

    def __init__(self):
        self.validations = self.batches = 0

    def on_validation_start(self, trainer, module):
        self.validations += 1
        if self.validations == 2:
            module.model.token_embedding.register_forward_pre_hook(self.count)

    def count(self, module, inputs):
        self.batches += 1
        if self.batches == 2:
            raise RuntimeError("interrupted")


def test_resumed_after_an_interruption_in_a_validation(tmp_path, make_data):
    """No validation is taken up in its middle: each covers the whole split."""
    seen = {}

    class Losses(Callback):
        def on_validation_end(self, trainer, module):
            seen.setdefault(trainer.global_step, []).append(
                trainer.callback_metrics["val_loss"].item()
            )

    whole = weights(run_in(tmp_path / "whole", make_data(), 20, callbacks=[Losses()]))
    with pytest.raises(RuntimeError, match="interrupted"):
        run_in(tmp_path / "parts", make_data(), 20, callbacks=[StopInValidation(), Losses()])
    last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
    assert open_checkpoint(last).step == 8
    resumed = weights(run_in(tmp_path / "parts", make_data(), 20, last, [Losses()]))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {step: len(losses) for step, losses in seen.items()} == {4: 2, 8: 1, 12: 2, 16: 2, 20: 2}
    for step, losses in seen.items():
        assert len(set(losses)) == 1, f"part of a validation at step {step}"


@pytest.mark.parametrize("interval", [4, 5])
def test_the_last_checkpoint_knows_the_best_loss(tmp_path, make_data, interval):
    """Also that of the validation at its own step, or a resumed run would undercut it."""
    losses = []

    class Losses(Callback):
        def on_validation_end(self, trainer, module):
            losses.append(trainer.callback_metrics["val_loss"].item())

    callbacks = [LastStep(), Losses(), BestCheckpoint(), LastCheckpoint(interval)]
    train(tmp_path, make_data(), 12, callbacks)
    assert losses == sorted(losses, reverse=True), "the last is the best"
    states = open_checkpoint(tmp_path / "checkpoints" / "last.ckpt").contents["callbacks"]
    (best,) = (state for key, state in states.items() if "val_loss" in key)
    assert best["best_model_score"].item() == losses[-1]


def test_a_resumed_run_does_not_replace_a_better_model_by_a_worse(tmp_path, make_data):
    run_in(tmp_path, make_data(), 12)
    best = tmp_path / "checkpoints" / "best.ckpt"
    before = best.read_bytes()
    model = make_model(optimizer=OptimizerOptions(lr=5.0, warmup_steps=0))
    train(tmp_path, make_data(), 16, checkpointers(), best.with_name("last.ckpt"), model)
    assert best.read_bytes() == before
    assert open_checkpoint(best.with_name("last.ckpt")).step == 16


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def half(contents, target):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match="No space left"):
        AtomicCheckpointIO().save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_resuming_with_another_batch_size_goes_on_behind_the_same_sample(tmp_path, make_data):
    run_in(tmp_path, make_data(), 10)
    last = tmp_path / "checkpoints" / "last.ckpt"
    data = make_data(batch_size=8)
    curves = TrainingCurves()
    run_in(tmp_path, data, 15, last, [curves])
    assert data.first_sample == 10 * 4
    assert curves.latest["tokens_seen"] == (10 * 4 + 4 * 8) * 16
    contents = open_checkpoint(last).contents["StoryData"]
    assert contents == {"samples_trained": 10 * 4 + 5 * 8, "optimizer_steps": 15}


def test_on_resuming_new_optimizer_options_win_and_are_said(tmp_path, make_data, capsys):
    run_in(tmp_path, make_data(), 10)
    last = tmp_path / "checkpoints" / "last.ckpt"
    model = make_model(optimizer=OptimizerOptions(lr=0.5, warmup_steps=3, weight_decay=0.7))
    rates = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    train(tmp_path, make_data(), 12, [Rates()], last, model)
    curve = model._schedule()
    assert rates == pytest.approx([0.5 * curve(10), 0.5 * curve(11)])
    decays = [g["weight_decay"] for g in model.optimizers(use_pl_optimizer=False).param_groups]
    assert decays == [0.7, 0.0]
    said = capsys.readouterr().err
    assert "From step 10 on" in said
    assert "lr 0.01 -> 0.5" in said
    assert "decay_steps 20 -> 12" in said
    assert "batch_size" not in said, "what is as before is not said"


def test_the_last_step_is_validated_whatever_the_interval(tmp_path, make_data):
    steps = []

    class Validations(Callback):
        def on_validation_end(self, trainer, module):
            steps.append(trainer.global_step)

    train(tmp_path, make_data(), 10, [Validations(), LastStep()])
    assert steps == [4, 8, 10]


def test_a_checkpoint_is_complete_and_opens_without_running_code(tmp_path, make_data):
    data = make_data()
    model = train(tmp_path, data, 5, checkpointers())
    path = tmp_path / "checkpoints" / "best.ckpt"
    contents = torch.load(path, weights_only=True)
    assert contents["slm"]["data"] == data.manifest.to_plain()
    checkpoint = open_checkpoint(path)
    tokenizer = checkpoint.make_tokenizer()
    assert tokenizer.sha256 == data.tokenizer.sha256
    tokens = torch.tensor([tokenizer.encode(make_stories(1)[0])[:16]])
    assert torch.equal(checkpoint.make_model()(tokens), model.model.eval()(tokens))
    assert "temperature" not in str(contents["hyper_parameters"])


def poison(model):
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))


class PoisonAt(Callback):
    """Makes the weights not-a-number, as a diverging run would."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == self.step:
            poison(module)


def test_a_diverged_run_stops_and_keeps_the_last_good_checkpoints(tmp_path, make_data):
    with pytest.raises(UserError, match="finite"):
        train(tmp_path, make_data(), 20, [PoisonAt(7), TrainingCurves(), *checkpointers()])
    for name in ("best", "last"):
        model = open_checkpoint(tmp_path / "checkpoints" / f"{name}.ckpt").make_model()
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert open_checkpoint(tmp_path / "checkpoints" / "last.ckpt").step == 5


def test_vocabularies_have_to_agree(tmp_path, make_data):
    model = make_model(GPTConfig(16, 301, 2, 2, 16, 0.0))
    with pytest.raises(UserError, match="vocabulary has 300 tokens, the model's 301") as error:
        train(tmp_path, make_data(), model=model)
    assert error.value.remedy == "--model.gpt.vocab_size 300"


def test_resuming_on_data_of_another_vocabulary_is_refused(tmp_path, make_data, stories_txt):
    train(tmp_path, make_data(), 5, checkpointers())
    others = [story.replace("happy", "gloomy") for story in make_stories(200, seed=5)]
    stories_txt.write_text("\n<|endoftext|>\n".join(others))
    shutil.rmtree(tmp_path / "data")  # with them there, the old vocabulary would be kept
    with pytest.raises(UserError, match=r"is not the one that .* was trained with"):
        train(tmp_path, make_data(), 10, (), tmp_path / "checkpoints" / "last.ckpt")


def test_a_context_longer_than_the_data_is_refused(tmp_path, make_data):
    data = make_data(block_size=50_000)
    data.prepare_data()
    with pytest.raises(UserError, match=r"train split .* contains .* tokens") as error:
        data.setup("fit")
    assert "--model.gpt.block_size" in error.value.remedy


@pytest.mark.parametrize(
    ("option", "value"),
    [("batch_size", 0), ("eval_batch_size", -1), ("num_workers", -1)],
)
def test_data_options_out_of_range_are_refused(make_data, option, value):
    with pytest.raises(UserError, match=f"--data.{option} {value}"):
        make_data(**{option: value})


def test_gpt2_has_the_vocabulary_it_has():
    with pytest.raises(UserError, match=r"tokenizer bpe --data\.vocab_size 4096"):
        StoryData(source="builtin", vocab_size=4096)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_equals_eager_training(tmp_path, make_data):
    eager = weights(train(tmp_path, make_data()))
    compiled = train(tmp_path, make_data(), model=make_model(compile=True))
    assert compiled._loss.compiled
    assert compiled.model._compiled_call_impl is None, "generation and measuring do without"
    torch.testing.assert_close(weights(compiled), eager, rtol=1e-3, atol=1e-4)
    assert not any("_orig_mod" in name for name in compiled.state_dict())


def test_compile_falls_back_to_eager_with_one_warning(tmp_path, make_data, monkeypatch):
    """As on a machine without a C++ compiler."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.warns(UserWarning, match=r"torch\.compile does not work") as warned,
    ):
        model = train(tmp_path, make_data(), model=make_model(compile=True))
    assert len([w for w in warned if "torch.compile" in str(w.message)]) == 1
    torch.testing.assert_close(weights(model), weights(train(tmp_path, make_data())))


def test_a_trainer_can_tell_stories_too(make_data, tmp_path):
    """For those who have a Trainer of several devices: `slm predict` does without."""
    trainer, model, data = make_trainer(tmp_path, 2), StoryModel(GPT, OPTIMIZER), make_data()
    trainer.fit(model, datamodule=data)
    requests = [StoryRequest(name, SamplingOptions(max_new_tokens=8)) for name in ("Tom", "Lily")]
    stories = trainer.predict(model, DataLoader(requests, batch_size=None))
    assert stories == ["".join(model.storyteller().generate(request)) for request in requests]
    assert all(stories)
