"""Exports of a trained model, against the original: logits, greedy text, loss, speed.

Usage:

    python benchmarks/exports.py CHECKPOINT STORIES --out exports

STORIES is a text file of stories that the model has not seen, with <|endoftext|> between them.
Needs transformers, gguf, onnxruntime and xllamacpp (llama.cpp, prebuilt). Writes OUT.json, and
prints it. Speeds are medians of five rounds, in which all programs take turns; one story, two
threads, greedy, from the call to the last token.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import xllamacpp
from torch.nn import functional as F

from slm.data.tokenizer import END_OF_TEXT, Tokenizer
from slm.export.gguf_files import read_gguf
from slm.export.hugging_face import import_transformers
from slm.export.onnx_graph import read_onnx
from slm.export.web import read_page
from slm.generation import SamplingOptions, generate
from slm.generation.quantization import for_inference
from slm.hardware import describe_machine, find_device
from slm.model import GPT
from slm.training.checkpoint import open_checkpoint

PROMPT = "Once upon a time"
LOSS_STORIES = 300


def slm(*words: str) -> None:
    """Runs a command of slm, and fails if it does."""
    subprocess.run([sys.executable, "-m", "slm.cli", *words], check=True, stdout=sys.stderr)


def greedy(model: GPT, tokenizer: Tokenizer, count: int) -> list[int]:
    """Our tokens, end-of-text excluded."""
    prompt = [tokenizer.end_of_text, *tokenizer.encode(PROMPT)]
    options = SamplingOptions(temperature=0, max_new_tokens=count, min_new_tokens=count)
    return generate(model, prompt, options, tokenizer.end_of_text)


def agreeing(ours: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items are equal before the first that is not."""
    pairs = zip(ours, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(ours), len(other)))


@torch.inference_mode()
def losses(
    models: Mapping[str, Callable[[torch.Tensor], torch.Tensor]],
    tokenizer: Tokenizer, texts: list[str], limit: int,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Bits per byte of each, and how far its logits are from the first one's on 20 stories."""
    nats, size, largest = dict.fromkeys(models, 0.0), 0, dict.fromkeys(models, 0.0)
    for number, text in enumerate(texts):
        ids = [tokenizer.end_of_text, *tokenizer.encode(text), tokenizer.end_of_text]
        ids_1T = torch.tensor([ids[: limit + 1]])
        size += len(tokenizer.decode(ids_1T[0, 1:].tolist()).encode())
        first = None
        for name, model in models.items():
            logits_TV = model(ids_1T[:, :-1])[0]
            first = logits_TV if first is None else first
            nats[name] += F.cross_entropy(logits_TV, ids_1T[0, 1:], reduction="sum").item()
            if number < 20:
                difference = (logits_TV - first).abs().max().item()
                largest[name] = max(largest[name], difference)
    return {
        name: {
            "bits_per_byte": nats[name] / size / 0.6931471805599453,
            "largest_logit_difference": largest[name],
        }
        for name in models
    }


# ---- llama.cpp --------------------------------------------------------------------------------


def llama_server(path: Path, context: int) -> Any:
    """llama.cpp with two threads, cache in float32, without flash attention."""
    options = xllamacpp.CommonParams()
    options.model.path = str(path)
    options.n_ctx, options.n_parallel, options.verbosity = context, 1, -1
    options.cpuparams.n_threads = options.cpuparams_batch.n_threads = 2
    options.cache_type_k = options.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    options.flash_attn_type = off
    return xllamacpp.Server(options)


def llama_greedy(server: Any, count: int) -> tuple[str, float]:
    """Its text, and new tokens per second, the prompt's time included."""
    started = time.perf_counter()
    found = server.handle_completions(
        {
            "prompt": PROMPT, "n_predict": count, "temperature": 0.0, "top_k": 1,
            "ignore_eos": True, "cache_prompt": False,
        }
    )  # fmt: skip
    rate = found["usage"]["completion_tokens"] / (time.perf_counter() - started)
    return found["choices"][0]["text"], rate


# ---- parts ------------------------------------------------------------------------------------


def check_transformers(folder: Path, model: GPT, tokenizer: Tokenizer, texts: list[str]) -> Any:
    """Greedy tokens and ids."""
    transformers = import_transformers()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    fast = transformers.AutoTokenizer.from_pretrained(folder)
    prompt = fast(PROMPT, return_tensors="pt")
    count = min(200, model.config.block_size - prompt["input_ids"].size(1))
    with torch.inference_mode():
        found = theirs.generate(
            **prompt, do_sample=False, max_new_tokens=count, min_new_tokens=count
        )
    new = found[0, prompt["input_ids"].size(1) :].tolist()
    ids = sum(fast(t)["input_ids"] == [tokenizer.end_of_text, *tokenizer.encode(t)] for t in texts)
    piped = transformers.pipeline("text-generation", str(folder))(PROMPT, max_new_tokens=20)
    return {
        "greedy_tokens_equal": f"{agreeing(greedy(model, tokenizer, count), new)} of {count}",
        "texts_with_equal_ids": f"{ids} of {len(texts)}",
        "pipeline": piped[0]["generated_text"],
    }, theirs


def check_llama_cpp(folder: Path, model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """Greedy text of 60 tokens."""
    found = {}
    for name in ("f32", "f16", "q8_0"):
        path = folder / f"model-{name}.gguf"
        text, _ = llama_greedy(llama_server(path, model.config.block_size), 60)
        ours = tokenizer.decode(greedy(model, tokenizer, 60))
        found[f"{name}: same text as ours"] = text == ours
        if text != ours:
            found[f"{name}: equal characters"] = f"{agreeing(text, ours)} of {len(ours)}"
    return found


def speeds(folder: Path, model: GPT, tokenizer: Tokenizer) -> dict[str, Any]:
    """Tokens per second of one story, in turns."""
    torch.set_num_threads(2)
    tokens = min(200, model.config.block_size - 8)
    formats = {"fp32": "f32", "int8": "q8_0"}
    models = {name: for_inference(model, name, "cpu") for name in formats}  # type: ignore[arg-type]
    servers = {
        name: llama_server(folder / f"model-{name}.gguf", model.config.block_size)
        for name in formats.values()
    }
    rates: dict[str, list[float]] = {}
    for round_ in range(6):
        for ours, theirs in formats.items():
            started = time.perf_counter()
            greedy(models[ours], tokenizer, tokens)
            rate = tokens / (time.perf_counter() - started)
            other = llama_greedy(servers[theirs], tokens)[1]
            if round_:
                rates.setdefault(f"slm {ours}", []).append(rate)
                rates.setdefault(f"llama.cpp {theirs}", []).append(other)
    return {
        name: {"median": statistics.median(found), "slowest": min(found), "fastest": max(found)}
        for name, found in rates.items()
    }


def main() -> None:
    """Exports, compares, writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("stories", type=Path)
    parser.add_argument("--out", type=Path, default=Path("exports"))
    options = parser.parse_args()
    checkpoint = open_checkpoint(options.checkpoint)
    model, tokenizer = checkpoint.make_model(), checkpoint.make_tokenizer()
    texts = [t.strip() for t in options.stories.read_text(encoding="utf-8").split(END_OF_TEXT)]
    texts = [text for text in texts if text]
    facts: dict[str, Any] = {
        "machine": describe_machine(find_device("cpu")),
        "model": model.config.to_plain(),
        "parameters": str(model.parameter_counts()),
        "step": checkpoint.step,
    }
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        for target in ("hf", "gguf", "onnx", "web"):
            path = ("--ckpt_path", str(options.checkpoint), "--out", str(root / target))
            slm("export", "--to", target, *path)
        facts["files"] = {
            str(path.relative_to(root)): path.stat().st_size
            for path in sorted(root.rglob("*"))
            if path.stat().st_size > 500_000 and path.is_file()
        }
        facts["transformers"], theirs = check_transformers(
            root / "hf", model, tokenizer, texts[:LOSS_STORIES]
        )
        facts["llama.cpp"] = check_llama_cpp(root / "gguf", model, tokenizer)
        models = {
            "slm": model,
            "hf": lambda tokens: theirs(tokens).logits,
            "gguf f32": read_gguf(root / "gguf" / "model-f32.gguf"),
            "gguf f16": read_gguf(root / "gguf" / "model-f16.gguf"),
            "gguf q8_0": read_gguf(root / "gguf" / "model-q8_0.gguf"),
            "onnx": read_onnx(root / "onnx" / "onnx" / "model.onnx"),
            "onnx 8-bit": read_onnx(root / "onnx" / "onnx" / "model_quantized.onnx"),
            "web": read_page(root / "web" / "index.html"),
        }
        limit = model.config.block_size
        facts["losses"] = losses(models, tokenizer, texts[:LOSS_STORIES], limit)
        facts["tokens_per_second"] = speeds(root / "gguf", model, tokenizer)
    text = json.dumps(facts, indent=1)
    options.out.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
