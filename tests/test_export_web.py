"""The web page: its weights, its network in JavaScript, and the page in a browser."""

import base64
import json
import math
import random
import re
import shutil
import subprocess
from html import unescape
from itertools import product
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
from conftest import make_stories

from slm.data.tokenizer import Tokenizer
from slm.export.target import TrainedModel
from slm.export.web import WEB, read_page
from slm.generation import SamplingOptions, generate
from slm.generation.quantization import quantize
from slm.model import GPT, GPTConfig
from slm.training.checkpoint import Checkpoint

NETWORK = Path(__file__).parent.parent / "slm" / "export" / "page" / "network.js"
NODE, CHROMIUM = shutil.which("node"), shutil.which("chromium")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")
MODERN = {"position": "rotary", "norm": "rms", "qk_norm": True, "qk_gain": True, "mlp": "swiglu"}
SHAPES = {
    "classic": {},
    "classic with biases": {"bias": True, "mlp": "gelu_tanh"},
    "modern": MODERN,
    "modern as it was": {"position": "rotary", "qk_norm": True},
    "untied": MODERN | {"tied": False, "norm_eps": 1e-3},
}


@pytest.fixture(scope="module")
def tokenizer():
    # An odd size: the page multiplies four rows at a time.
    return Tokenizer.train([*make_stories(300), "naïve 漢字 <b> don't </script> <!--"], 399)


def export(options, tokenizer, folder, n_embd=24):
    torch.manual_seed(0)
    config = GPTConfig(20, tokenizer.n_vocab, 2, 2, n_embd, 0.0, **options)
    model = GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    if config.qk_norm:  # so small that the epsilon of the norm counts
        for block in model.blocks:
            block.attention.qkv.weight.data[: 2 * n_embd] *= 1e-3
    path = folder / "</script><b>" / "checkpoints" / "best.ckpt"
    WEB.write(TrainedModel(Checkpoint(path, {"global_step": 7}), model, tokenizer), folder)
    return model, folder / "index.html"


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES)
def page(request, tokenizer, tmp_path_factory):
    """A model, and the path of its page."""
    return export(request.param, tokenizer, tmp_path_factory.mktemp("web"))


def run_node(script, tmp_path, **inputs):
    """What a script that follows network.js prints, as JSON; `inputs` are its variables."""
    variables = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in inputs.items())
    file = tmp_path / "script.cjs"
    file.write_text(NETWORK.read_text(encoding="utf-8") + variables + script, encoding="utf-8")
    done = subprocess.run([NODE, file], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


LOAD = """
const page = require("fs").readFileSync(path, "utf8");
const part = (id) => page.match(new RegExp(`<script [^>]*id="${id}">(.*?)</script>`, "s"))[1];
const about = JSON.parse(part("about"));
const model = new GPT(about.config, readTensors(about.tensors, part("weights")));
"""


def test_the_page_has_the_rounded_weights(page):
    model, path = page
    found = read_page(path).state_dict()
    for name, tensor in model.state_dict().items():
        expected = tensor
        if tensor.dim() == 2:
            integers, scales = quantize(tensor)
            expected = integers.float() * scales.float()[:, None]
        assert torch.equal(found[name], expected), name


def test_the_page_is_little_larger_than_its_weights(tokenizer, tmp_path):
    model, path = export(MODERN, tokenizer, tmp_path, n_embd=192)
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert path.stat().st_size < 1.5 * len(base64.b64encode(bytes(weights)))


def test_nothing_in_the_page_ends_a_script_or_asks_for_a_file(page):
    text = page[1].read_text(encoding="utf-8")
    assert text.count("<script") == text.count("</script>") == 3
    assert "<!--" not in text
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|src=|@import|url\(|fetch\(", text)


def test_the_network_is_short_enough_to_read():
    assert len(NETWORK.read_text(encoding="utf-8").splitlines()) <= 300


def combinations():
    """Every combination of the architecture's switches."""
    qk_norms = {}, {"qk_norm": True}, {"qk_norm": True, "qk_gain": True}
    mlps, truths = ("gelu", "gelu_tanh", "swiglu"), (False, True)
    names = "position", "norm", "mlp", "bias", "tied"
    for *values, qk_norm in product(
        ("learned", "rotary"), ("layer", "rms"), mlps, truths, truths, qk_norms
    ):
        yield dict(zip(names, values, strict=True)) | qk_norm


@needs_node
def test_the_network_computes_the_same_logits(tokenizer, tmp_path):
    paths, expected, tokens = [], [], list(range(100, 120))
    for i, options in enumerate(combinations()):
        (tmp_path / str(i)).mkdir()
        paths.append(str(export(options, tokenizer, tmp_path / str(i), n_embd=8)[1]))
        with torch.inference_mode():
            expected.append(read_page(Path(paths[-1]))(torch.tensor([tokens]))[0])
    script = f"""
        const logits = (path) => {{ {LOAD} return tokens.map((t) => [...model.forward(t)]); }};
        console.log(JSON.stringify(paths.map(logits)));"""
    found = torch.tensor(run_node(script, tmp_path, paths=paths, tokens=tokens))
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


@needs_node
def test_the_error_function_is_exact_to_seven_digits(tmp_path):
    points = [i / 100 for i in range(-500, 501)]
    script = "console.log(JSON.stringify(points.map(erf)));"
    found = run_node(script, tmp_path, points=points)
    assert found == pytest.approx(list(map(math.erf, points)), abs=1.6e-7)


@needs_node
def test_greedy_tokens_are_the_same_also_past_the_context(page, tmp_path):
    path, prompt = page[1], [398, 72, 105]
    script = f"""{LOAD}
        model.head.scales[398] = 0; // end-of-text never wins
        const options = {{ temperature: 0, maxNewTokens: 50, seed: 1 }};
        const tokens = [...generate(model, prompt, options)].filter(Boolean).map((n) => n.token);
        console.log(JSON.stringify(tokens));"""
    model = read_page(path)
    model.head_weight.data[398] = 0
    greedy = SamplingOptions(temperature=0, max_new_tokens=50)
    expected = generate(model, prompt, greedy)
    # The row is also the embedding of the prompt's first token, here and there, if they are tied.
    assert run_node(script, tmp_path, path=str(path), prompt=prompt) == expected


ALPHABET = list(
    "abc XYZ 0123 .,!?'\"<>|\n\t\r\u00a0\u0085\u200b\ufeff\u2028éßñ漢字🙂👍🏽\x00\x1c'sdmtll"
)


def odd_texts(count):
    draw = random.Random(0)
    made = ["".join(draw.choices(ALPHABET, k=draw.randrange(30))) for _ in range(count)]
    return ["", "<|endoftext|>", "don't we'll I'VE", "  two  spaces \n\n", *made]


@needs_node
@pytest.mark.parametrize("name", ["own", "gpt2"])
def test_ids_are_equal_on_odd_texts(tokenizer, tmp_path, name):
    ours = tokenizer if name == "own" else Tokenizer.gpt2()
    tokens, texts = [token.decode("latin-1") for token in ours.token_bytes], odd_texts(2000)
    script = """
        const tokenizer = new Tokenizer(tokens);
        console.log(JSON.stringify(texts.map((text) => tokenizer.encode(text))));"""
    assert run_node(script, tmp_path, tokens=tokens, texts=texts) == list(map(ours.encode, texts))


@needs_node
def test_sampling_keeps_to_top_k_and_top_p(tmp_path):
    probabilities = [0.05, 0.5, 0.15, 0.3]
    script = """
        const logits = Float64Array.from(probabilities, Math.log);
        const count = (options) => {
          const random = randomNumbers(7), counts = probabilities.map(() => 0);
          for (let i = 0; i < 20000; i++) counts[sample(logits, options, random)]++;
          return counts.map((n) => n / 20000);
        };
        const plain = { temperature: 1, topK: 0, topP: 1 };
        console.log(JSON.stringify([
          count(plain), count({ ...plain, topK: 2 }), count({ ...plain, topP: 0.7 }),
          count({ ...plain, temperature: 0.5 }), count({ ...plain, temperature: 0 }),
        ]));"""
    square = [p**2 / sum(q**2 for q in probabilities) for p in probabilities]
    expected = [
        probabilities, [0, 0.625, 0, 0.375], [0, 0.625, 0, 0.375], square, [0, 1, 0, 0],
    ]  # fmt: skip
    found = run_node(script, tmp_path, probabilities=probabilities)
    for drawn, wanted in zip(found, expected, strict=True):
        assert drawn == pytest.approx(wanted, abs=0.015)
        assert [p == 0 for p in drawn] == [p == 0 for p in wanted]


@needs_node
def test_the_likeliest_come_first_and_of_equal_ones_the_lowest_id(tmp_path):
    draw = random.Random(0)
    logits, sizes = [draw.randrange(40) for _ in range(300)], [1, 5, 100, 101, 300]
    script = "console.log(JSON.stringify(sizes.map((k) => likeliest(logits, k))));"
    ordered = sorted(range(300), key=lambda i: -logits[i])
    expected = [ordered[:k] for k in sizes]
    assert run_node(script, tmp_path, logits=logits, sizes=sizes) == expected


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_the_same_story(page, tokenizer, tmp_path):
    model, path = read_page(page[1]), page[1]
    fragment = urlencode({"prompt": "a cat", "temperature": 0, "max": 12, "start": ""})
    quiet = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000", "--dump-dom",
    ]  # fmt: skip
    done = subprocess.run(
        [CHROMIUM, *quiet, f"{path.as_uri()}#{fragment}"], capture_output=True, timeout=120
    )
    text = done.stdout.decode("utf-8", "replace")
    assert 'data-finished="true"' in text
    (story,) = re.findall(r'<div id="story".*?>(.*?)</div>', text, re.DOTALL)
    prompt = [tokenizer.end_of_text, *tokenizer.encode("a cat")]
    greedy = SamplingOptions(temperature=0, max_new_tokens=12)
    tokens = generate(model, prompt, greedy, tokenizer.end_of_text)
    shown = unescape(re.sub("<[^>]*>", "", story))
    whole = tokenizer.decode(tokens).replace("\r", "\n").replace("\x00", "\ufffd")
    assert shown.rstrip("\ufffd") == ("a cat" + whole).rstrip("\ufffd")
