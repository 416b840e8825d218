"""`slm export` and `slm import`, by the real commands."""

import json
import re
import shutil

import pytest
import torch
from conftest import checkpoint, refuse
from safetensors.torch import load_file, save_file

from slm.export import comparison
from slm.model import GPT
from slm.training.checkpoint import open_checkpoint

SHAPES = {
    "classic": (),
    "modern": (
        "--model.gpt.position", "rotary", "--model.gpt.norm", "rms", "--model.gpt.mlp", "swiglu",
        "--model.gpt.qk_norm", "true", "--model.gpt.qk_gain", "true",
    ),
}  # fmt: skip
EXPORT = "lightning_logs/version_0/export"


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def run(slm, request):
    """The command, after a training."""
    assert slm("fit", "--config", "tiny.yaml", *request.param).status == 0
    return slm


@pytest.fixture
def classic(slm, trained, workplace):
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    return slm


def exported(slm, target, *words):
    result = slm("export", "--to", target, *words)
    assert result.status == 0, result.err
    return result.out


def weights(path):
    return open_checkpoint(path).make_model().state_dict()


def test_a_model_comes_back_as_it_was(run, workplace):
    pytest.importorskip("transformers")
    out = exported(run, "hf")
    assert "largest logit difference" in out
    result = run("import", f"hf:{EXPORT}/hf")
    assert result.status == 0, result.err
    back = workplace / "lightning_logs" / "hf" / "checkpoints" / "best.ckpt"
    ours, theirs = weights(checkpoint("best")), weights(back)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    measured = [
        run("validate", "--ckpt_path", path, "--config", "tiny.yaml").out.splitlines()[-3:]
        for path in (checkpoint("best"), back)
    ]
    assert measured[0] == measured[1]
    stories = [
        run("predict", "--ckpt_path", path, "--max_new_tokens", 20).out
        for path in (checkpoint("best"), "hf")
    ]
    assert stories[0] == stories[1]
    card = exported(run, "pt", "--ckpt_path", "hf", "--out", "plain") and (
        workplace / "plain" / "README.md"
    ).read_text(encoding="utf-8")
    assert "imported from hf" in card
    assert "trained from scratch" not in card
    tuned = run("fit", "--config", "tiny.yaml", "--model.init_from", back, "--data.tokenizer", back)
    assert tuned.status == 0, tuned.err
    losses = re.findall(r"val_loss ([\d.]+)", tuned.err)
    assert float(losses[-1]) < float(measured[0][0].split()[1])


def test_the_plain_files_hold_the_weights(classic, workplace):
    exported(classic, "pt", "--out", "plain")
    exported(classic, "safetensors")
    ours = weights(checkpoint("best"))
    pt = torch.load(workplace / "plain" / "best_model_params.pt", weights_only=True)
    safe = load_file(workplace / EXPORT / "safetensors" / "model.safetensors")
    assert all(torch.equal(ours[name], pt[name]) for name in ours)
    assert all(torch.equal(ours[name], safe[name]) for name in ours)


def test_the_card_tells_where_the_model_comes_from(classic, workplace):
    exported(classic, "pt", "--out", "plain")
    card = (workplace / "plain" / "README.md").read_text(encoding="utf-8")
    path = open_checkpoint(checkpoint("best"))
    for expected in ("stories.txt", path.fingerprint(), f"{path.best_loss:.4f} nats", "lr 0.01"):
        assert expected in card
    assert "trained from scratch" in card
    story = classic(
        "predict", "--max_new_tokens", 200, "--weights", "fp32", "--seed", 1338
    ).out.split("\n")
    assert "\n".join(f"> {line}" for line in story if line) in card
    assert "not measured" in card
    done = classic("evaluate", "--pairs", 10)
    assert done.status == 0, done.err
    exported(classic, "pt", "--out", "again")
    card = (workplace / "again" / "README.md").read_text(encoding="utf-8")
    scores = json.loads((workplace / "lightning_logs/version_0/scorecard.json").read_text())
    assert f"{scores['loss']['bits_per_byte']:.4f} bits per byte" in card


def test_a_file_that_is_another_network_is_not_kept(classic, workplace, monkeypatch):
    other = GPT(open_checkpoint(checkpoint("best")).gpt).eval()
    real = comparison.compare
    monkeypatch.setattr(
        comparison, "compare", lambda trained, _: real(trained, {"best_model_params.pt": other})
    )
    refuse(classic("export", "--to", "pt", "--out", "plain"), "does not match")
    assert not list(workplace.glob("plain*"))


# ---- mistakes ----------------------------------------------------------------------------------


def test_mistakes_in_exporting_are_explained(classic, workplace):
    (workplace / "full").mkdir()
    (workplace / "full" / "file").touch()
    for words, expected in {
        (): "slm export --to hf",
        ("--to", "gguff"): "gguf",
        ("--to", "pt", "--out", "full"): "already exists",
        ("--to", "pt", "--out", "tiny.yaml"): "already exists",
        ("--to", "pt", "--out", "/proc/no"): "/proc/no",
        ("--to", "pt", "--out", "."): "already exists",
        ("--to", "pt", "--out", "/"): "already exists",
        ("--to", "pt", "--ckpt_path", "none.ckpt"): "is not there",
    }.items():
        refuse(classic("export", *words), expected)
    assert not list(workplace.glob("*.tmp-*"))


PACKAGES = {"hf": "transformers", "gguf": "gguf", "onnx": "onnxruntime"}


@pytest.mark.parametrize("target", ["hf", "gguf", "onnx", "pt", "safetensors", "web"])
def test_a_full_disk_leaves_nothing(classic, workplace, target):
    resource = pytest.importorskip("resource")
    pytest.importorskip(PACKAGES.get(target, "torch"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        result = classic("export", "--to", target, "--out", "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refuse(result, "MB are free")
    assert not list(workplace.glob("new*"))


def test_a_shape_that_a_target_lacks_is_named(slm, workplace):
    assert slm("fit", "--config", "tiny.yaml", "--model.gpt.position", "rotary").status == 0
    for target in ("hf", "gguf"):
        refuse(slm("export", "--to", target), "position rotary", "slm export --to onnx")
    assert not list((workplace / EXPORT).glob("*"))
    exported(slm, "safetensors")


def replace_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def cut(path):
    path.write_bytes(path.read_bytes()[:99])


DAMAGES = {
    "no config": (lambda f: (f / "config.json").unlink(), "is not a model"),
    "broken config": (lambda f: (f / "config.json").write_text("{"), "config.json cannot be read"),
    "a list": (lambda f: (f / "config.json").write_text("[1]"), "no object"),
    "another family": (lambda f: replace_config(f, model_type="gpt_neo"), "model_type 'gpt_neo'"),
    "another activation": (lambda f: replace_config(f, activation_function="relu"), "relu"),
    "scaled": (lambda f: replace_config(f, scale_attn_weights=False), "scale_attn_weights"),
    "quantized": (lambda f: replace_config(f, quantization_config={}), "quantization_config"),
    "odd heads": (lambda f: replace_config(f, n_head=3), "n_head 3"),
    "a layer less": (lambda f: replace_config(f, n_layer=1), "does not have"),
    "a layer more": (lambda f: replace_config(f, n_layer=3), "no weight"),
    "another width": (lambda f: replace_config(f, n_embd=32), "do not fit"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "unsupported tokenizer"),
    "broken tokenizer": (
        lambda f: (f / "tokenizer.json").write_text("{}"),
        "unsupported tokenizer",
    ),
    "cut weights": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:99]
        ),
        "model.safetensors cannot be read",
    ),
    "a pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "pytorch_model.bin: a pickle",
    ),
}


MODERN_DAMAGES = {
    "other heads": (lambda f: replace_config(f, num_attention_heads=4, head_dim=4), "do not fit"),
    "wider": (lambda f: replace_config(f, hidden_size=32, head_dim=16), "do not fit"),
    "fractions": (lambda f: replace_config(f, num_hidden_layers=2.0), "no whole number"),
    "another base": (lambda f: replace_config(f, rope_parameters={"rope_theta": 1e6}), "base"),
    "a rope": (lambda f: replace_config(f, rope_parameters="linear"), "rotary positions 'linear'"),
    "a list of types": (lambda f: replace_config(f, model_type=["qwen3"]), "model_type"),
    "no heads": (lambda f: replace_config(f, num_attention_heads=0, head_dim=None), "config.json"),
    "biases": (lambda f: replace_config(f, attention_bias=True), "attention_bias True"),
    "an odd index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": [1]}'),
        "an index without a map",
    ),
    "not finite": (lambda f: change_weight(f, "model.norm.weight", float("nan")), "not finite"),
}


def change_weight(folder, name, value):
    state = load_file(folder / "model.safetensors")
    state[name][0] = value
    save_file(state, folder / "model.safetensors")


def test_damaged_folders_of_the_modern_shape_are_refused(slm, workplace):
    pytest.importorskip("transformers")
    assert slm("fit", "--config", "tiny.yaml", *SHAPES["modern"]).status == 0
    exported(slm, "hf", "--out", "good")
    for name, (damage, expected) in MODERN_DAMAGES.items():
        shutil.copytree("good", workplace / name)
        damage(workplace / name)
        refuse(slm("import", f"hf:{name}", "--out", "new.ckpt"), expected)
    assert not list(workplace.glob("new*"))


def test_a_full_disk_leaves_no_run(classic, workplace):
    resource = pytest.importorskip("resource")
    pytest.importorskip("transformers")
    exported(classic, "hf", "--out", "good")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        result = classic("import", "hf:good")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    refuse(result, "MB are free")
    assert not (workplace / "lightning_logs" / "good").exists()


def test_damaged_folders_are_refused(classic, workplace):
    pytest.importorskip("transformers")
    exported(classic, "hf", "--out", "good")
    for name, (damage, expected) in DAMAGES.items():
        shutil.copytree("good", workplace / name)
        damage(workplace / name)
        refuse(classic("import", f"hf:{name}", "--out", "new.ckpt"), expected)
    assert not list(workplace.glob("new*"))


def test_foreign_tokenizers_are_refused(classic, workplace):
    pytest.importorskip("transformers")
    exported(classic, "hf", "--out", "good")
    path = workplace / "good" / "tokenizer.json"
    plain = json.loads(path.read_text())
    for change, expected in (
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text in another way"),
        ({"normalizer": {"type": "Lowercase"}}, "rewrites text"),
        (
            {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
            "of type WordLevel",
        ),
        ({"model": plain["model"] | {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix"),
        ({"model": plain["model"] | {"merges": plain["model"]["merges"][::-1]}}, "another order"),
    ):
        path.write_text(json.dumps(plain | change))
        refuse(classic("import", "hf:good", "--out", "new.ckpt"), "unsupported tokenizer", expected)


def test_mistakes_in_importing_are_explained(slm, workplace):
    (workplace / "old.ckpt").touch()
    (workplace / "empty").mkdir()
    for words, expected in {
        (): "slm import hf:FOLDER",
        ("empty",): "slm import hf:empty",
        ("hf:none",): "none is not a folder",
        ("hf:empty",): "there is no config.json",
        ("hf:empty", "--out", "old.ckpt"): "already exists",
    }.items():
        refuse(slm("import", *words), expected)


# ---- folders that others wrote -----------------------------------------------------------------


def test_end_of_text_may_have_the_first_id_and_heads_may_share_keys(classic, workplace):
    """As training a tokenizer with `tokenizers` and a Llama with grouped queries give it."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<end>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    fast.train_from_iterator([(workplace / "stories.txt").read_text()], trainer)
    torch.manual_seed(0)
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=304, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
            eos_token_id=0,
        )
    ).eval()  # fmt: skip
    for parameter in llama.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    llama.save_pretrained(workplace / "llama")
    fast.save(str(workplace / "llama" / "tokenizer.json"))
    result = classic("import", "hf:llama", "--out", "llama.ckpt")
    assert result.status == 0, result.err
    back = open_checkpoint(workplace / "llama.ckpt")
    tokenizer, text = back.make_tokenizer(), "Once upon a time a cat"
    theirs = [0, *fast.encode(text).ids]
    ours = [tokenizer.end_of_text, *tokenizer.encode(text)]
    assert [token - 1 if token else 303 for token in theirs] == ours
    with torch.inference_mode():
        expected = llama(torch.tensor([theirs])).logits[0]
        found = back.make_model()(torch.tensor([ours]))[0]
    torch.testing.assert_close(found, expected.roll(-1, dims=1))


def test_weights_may_lie_in_several_files_without_a_prefix(classic, workplace):
    pytest.importorskip("transformers")
    exported(classic, "hf", "--out", "split")
    state = load_file(workplace / "split" / "model.safetensors")
    names = {name: f"part-{number % 2}.safetensors" for number, name in enumerate(state)}
    names = {name.removeprefix("transformer."): file for name, file in names.items()}
    for file in set(names.values()):
        part = {n: state[f"transformer.{n}"] for n, where in names.items() if where == file}
        save_file(part, workplace / "split" / file)
    (workplace / "split" / "model.safetensors").unlink()
    index = workplace / "split" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert classic("import", "hf:split", "--out", "split.ckpt").status == 0
    ours, theirs = weights(checkpoint("best")), weights(workplace / "split.ckpt")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
