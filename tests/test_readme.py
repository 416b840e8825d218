"""Every command of the README runs, with the sizes made small."""

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import make_stories, write_stories

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
RECIPE = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
TRAINING = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
LOOKING = (ROOT / "docs" / "looking.md").read_text(encoding="utf-8")
GENERATION = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
INTERRUPTIONS = (ROOT / "docs" / "interruptions.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
NOTEBOOK = (ROOT / "docs" / "common-notebook.md").read_text(encoding="utf-8")
EXPORT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
SERVING = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
DOCS = (DATA, RECIPE, NOTEBOOK, GENERATION, TRAINING, LOOKING, INTERRUPTIONS, SCALING, EXPORT,
        SERVING)  # fmt: skip
DATA_OPTIONS = "--data.source stories.txt --data.tokenizer bpe --data.vocab_size 300"
MODEL_OPTIONS = """
  --data.batch_size 2 --model.gpt.vocab_size 300 --model.gpt.block_size 16 --model.gpt.n_layer 1
  --model.gpt.n_head 2 --model.gpt.n_embd 16 --model.gpt.dropout 0
  --model.compile false
"""
SHARE = "--data.validation_share 0.2"


def shell_commands(text):
    """The lines of a text's shell blocks, without comments."""
    for block in re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL):
        for line in block.splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def made_small(verb, words):
    """What has to be added to a command for it to run in a second."""
    if verb == "verify-resume":
        return f"{DATA_OPTIONS} {SHARE} {MODEL_OPTIONS} --steps 4 --kills 1"
    if verb == "predict":
        return "--max_new_tokens 5"
    if verb == "bench" and words[0] == "train":
        return "--config tiny.yaml --repeats 1 --steps 1 --loop false --compile false"
    if verb == "evaluate":
        return "--pairs 10 --loss_tokens 100 --generations fed.jsonl"
    if verb == "bench":
        return "--tokens 3 --repeats 1 --cold false --loss_tokens 50 --compile false"
    if verb == "fit" and "last" in words:
        return "--trainer.max_steps 4"
    if verb == "fit" and "--model.init_from" in words:
        return f"{SHARE} --data.batch_size 2 --trainer.max_steps 2 --report false"
    if verb == "fit":
        end = "--budget 1s" if "--budget" in words else "--trainer.max_steps 2"
        return f"{DATA_OPTIONS} {SHARE} {MODEL_OPTIONS} {end} --report false"
    if verb == "prepare":
        return SHARE
    if verb in ("serve", "demo"):
        return "--port 0"
    return ""


def write_corpora(folder):
    """The files that the commands speak of."""
    (folder / "books").mkdir()
    (folder / "fed.jsonl").write_text('{"story": "Tom saw a dog."}')
    (folder / "prompts.txt").write_text("Tom\nLily\n")
    write_stories(folder / "books" / "a.jsonl", make_stories(60, seed=1))
    write_stories(folder / "other.txt", make_stories(100, seed=2))
    rows = [{"Context": f"I am {n}.", "Response": "Why?"} for n in range(100)]
    (folder / "talks.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"`?make (\w+)", README))
    assert {"quickstart", "test", "lint", "regression", "slow"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    ("text", "least"),
    [
        (README, 18), (DATA, 5), (RECIPE, 5), (GENERATION, 7), (TRAINING, 3), (LOOKING, 5),
        (INTERRUPTIONS, 1), (EXPORT, 9), (SERVING, 4),
    ],
    ids=[
        "README", "data.md", "recipe.md", "generation.md", "training.md", "looking.md",
        "interruptions.md", "export.md", "serving.md",
    ],
)  # fmt: skip
def test_every_command_runs(slm, workplace, text, least, servers_end_at_once):
    """In the order of the text, in one folder, as a reader would type them."""
    write_corpora(workplace)
    for _ in range({DATA: 1, GENERATION: 1, LOOKING: 2, EXPORT: 1, SERVING: 1}.get(text, 0)):
        assert slm("fit", "--config", "tiny.yaml", "--data.request", "words").status == 0
    ran = 0
    for words in shell_commands(text):
        if words[0] in ("make", "tensorboard", "pip", "curl"):
            continue  # `make test` runs this; TensorBoard is started in test_reports
        verb, *rest = words[3:] if words[:3] == ["python", "-m", "slm.cli"] else words[1:]
        result = slm(verb, *rest, *shlex.split(made_small(verb, rest)))
        assert result.status == 0, (words, result.err)
        ran += 1
    assert ran >= least


def test_the_python_example_runs(slm, workplace, capsys):
    assert slm("fit", "--config", "tiny.yaml").status == 0
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(re.sub(r"^  ", "", example, flags=re.MULTILINE), {})
    assert capsys.readouterr().out.strip()


def test_the_python_examples_of_exporting_run(slm, workplace, trained, capsys):
    pytest.importorskip("transformers")
    shutil.copytree(trained / "lightning_logs", workplace / "lightning_logs")
    assert slm("export", "--to", "hf").status == 0
    assert slm("export", "--to", "pt", "--out", "plain").status == 0
    examples = re.findall(r"```python\n(.*?)```", EXPORT, flags=re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        exec(example, {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_no_figure_is_left_to_be_filled_in():
    for text in (README, *DOCS):
        assert not re.search(r"\b(TABLE|RESULTS|SEEDS|COMMIT|COLD|COST\w*|TODO|XXX)\b", text)


def test_files_it_points_to_exist():
    docs = [(ROOT / "docs", text) for text in DOCS]
    for folder, text in [(ROOT, README), *docs]:
        for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", text):
            file, _, anchor = path.partition("#")
            assert (folder / file).exists(), path
            if anchor:
                titles = re.findall(r"^#+ (.*)$", (folder / file).read_text("utf-8"), re.MULTILINE)
                assert anchor in {title.lower().replace(" ", "-") for title in titles}, path


def test_the_tree_of_folders_is_the_packages():
    (tree,) = re.findall(r"```\nslm/\n(.*?)^configs/", README, flags=re.DOTALL | re.MULTILINE)
    shown = {line.split()[0].rstrip("/") for line in tree.splitlines() if line[:2] == "  "}
    folders = {path.parent.name for path in (ROOT / "slm").glob("*/__init__.py")}
    assert shown == {"cli.py", "callbacks", *folders}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quick_start_tells_a_story(slm, workplace):
    """The whole of it, as shipped: minutes."""
    torch.set_num_threads(os.cpu_count() or 1)  # conftest has set one, for tiny networks
    result = slm("fit", "--config", "configs/quickstart.yaml")
    assert result.status == 0, result.err
    bits = float(re.findall(r"bits_per_byte ([\d.]+)", result.err)[-1])
    assert bits < 0.075  # 0.060 where it was measured
    story = result.out.partition("best checkpoint:\n\n")[2].strip()
    assert story.startswith("Once upon a time")
    assert story[-1] in '.!?"', "it comes to an end"
    known = {word for text in make_builtin() for word in re.findall(r"[a-z']+", text.lower())}
    words = re.findall(r"[a-z']+", story.lower())
    assert len(words) > 60
    assert sum(word in known for word in words) / len(words) > 0.95


def make_builtin():
    from slm.data.builtin import stories

    return [*stories(5000), *make_stories(1)]
