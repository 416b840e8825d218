"""Why the notebook that most TinyStories projects descend from stops at 2.39, step by step.

Usage:

    python benchmarks/common_notebook.py PREPARED --tokens 8e5 --seeds 1 2 --out notebook.json

PREPARED is a folder that `slm prepare` made, with a vocabulary of 4,096. A small classic GPT
(4 layers, width 128, context 128) is trained on the same number of tokens in every row; row 0 does
what the notebook does on a GPU without bfloat16, and each further row repairs one thing and keeps
the repairs above it. 32 micro-batches make one of the notebook's optimizer steps, as there; they
have 2 x 128 tokens in place of its 32 x 128, so that a run of a hundredth of its tokens still has a
hundred optimizer steps (the notebook: 625).

Bits per byte are over the text of the held-out stories; end-of-text tokens, which the notebook does
not have, are left out of the text and of the measure in all rows. Also counted: how many of ten
stories come to an end by themselves within 250 tokens.
"""

import argparse
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from slm.data.manifest import Manifest
from slm.model import GPT, GPTConfig, SamplingOptions, generate

MICRO_BATCH, CONTEXT, ACCUMULATE = 2, 128, 32
STORIES, STORY_TOKENS = 10, 250
LOSS_SCALE = 2.0**16  # what torch's GradScaler begins with


@dataclass(frozen=True)
class Way:
    """How a row trains; the defaults are the notebook's way."""

    unscaled: bool = False
    """Whether gradients are divided by the loss scale before they are clipped, once a step."""
    falling: bool = False
    """Whether the learning rate follows optimizer steps and falls to a tenth."""
    groups: bool = False
    """Whether vectors are kept from weight decay."""
    accumulate: int = ACCUMULATE
    """Micro-batches per optimizer step."""
    end_of_text: bool = False
    """Whether stories are separated."""
    peak: float = 5e-4
    """Highest learning rate."""
    dropout: float = 0.1
    """The notebook's; nothing here is seen twice."""


AS_PUBLISHED = Way()
ROWS = {
    "as published (float16)": AS_PUBLISHED,
    "gradients unscaled before clipping": (w := replace(AS_PUBLISHED, unscaled=True)),
    "learning rate by optimizer steps, and falling": (w := replace(w, falling=True)),
    "no decay of vectors": (w := replace(w, groups=True)),
    "an eighth of the batch, eight times the steps": (w := replace(w, accumulate=4)),
    "end-of-text between stories": (w := replace(w, end_of_text=True)),
    "learning rate 3e-3": (w := replace(w, peak=3e-3)),
    "no dropout": replace(w, dropout=0.0),
}


def rate(way: Way, done: int, total: int) -> float:
    """The learning rate after `done` of `total` micro-batches."""
    warmup = total // 20  # 1,000 of 20,000 in the notebook
    if not way.falling:
        # LinearLR from a third to 1e-4, then a "cosine decay" from there up to 5e-4.
        if done < warmup:
            return 1e-4 * (1 / 3 + 2 / 3 * done / warmup)
        fall = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))
        return way.peak + (1e-4 - way.peak) * fall
    if done < warmup:
        return way.peak * (done + 1) / warmup
    fall = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (total - warmup)))
    return way.peak * (0.1 + 0.9 * fall)


def train(way: Way, ids: np.ndarray, vocab_size: int, tokens: int, seed: int) -> tuple[GPT, int]:
    """Trains one row; returns the model and the number of optimizer steps."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(CONTEXT, vocab_size, 4, 4, 128, way.dropout))
    vectors = [p for p in model.parameters() if p.dim() < 2 and way.groups]
    others = [p for p in model.parameters() if p.dim() >= 2 or not way.groups]
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-4, betas=(0.9, 0.95), eps=1e-9,
    )  # fmt: skip
    random = np.random.default_rng(seed)
    total, steps, scale = tokens // (MICRO_BATCH * CONTEXT), 0, LOSS_SCALE
    for done in range(total):
        starts = random.integers(0, len(ids) - CONTEXT - 1, MICRO_BATCH)
        rows = torch.from_numpy(ids[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))
        logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        (scale * loss / way.accumulate).backward()
        if not way.unscaled:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        if (done + 1) % way.accumulate == 0:
            for parameter in model.parameters():
                parameter.grad /= scale
            if way.unscaled:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = rate(way, done, total)
            optimizer.step()
            optimizer.zero_grad()
            steps += 1
    return model, steps


@torch.inference_mode()
def bits_per_byte(model: GPT, ids: np.ndarray, text_bytes: int) -> float:
    """Over consecutive windows of a text without end-of-text."""
    model.eval()
    nats, count, size = 0.0, 0, 64 * CONTEXT
    for start in range(0, len(ids) - 1 - size, size):
        rows = torch.from_numpy(ids[start : start + size + 1].astype(np.int64))
        logits = model(rows[:-1].view(-1, CONTEXT))
        nats += float(F.cross_entropy(logits.flatten(0, 1), rows[1:], reduction="sum"))
        count += size
    return nats / math.log(2) / (text_bytes * count / len(ids))


def main() -> None:
    """Trains every row with every seed, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--tokens", type=float, default=8e5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rows", type=int, nargs="+", default=list(range(len(ROWS))))
    parser.add_argument("--out", type=Path, default=Path("notebook.json"))
    options = parser.parse_args()
    manifest = Manifest.load(options.prepared)
    tokenizer = manifest.make_tokenizer(options.prepared)
    end = tokenizer.end_of_text
    splits = {
        split: np.fromfile(Manifest.path(options.prepared, split), manifest.dtype)
        for split in ("train", "validation")
    }
    held_out = splits["validation"][splits["validation"] != end]
    text_bytes = int(tokenizer.byte_lengths()[held_out].sum())
    found = []
    for number, (name, way) in enumerate(ROWS.items()):
        for seed in options.seeds if number in options.rows else ():
            ids = splits["train"]
            ids = ids if way.end_of_text else ids[ids != end]
            begin = time.perf_counter()
            model, steps = train(way, ids, tokenizer.n_vocab, int(options.tokens), seed)
            seconds = time.perf_counter() - begin
            bits = bits_per_byte(model, held_out, text_bytes)
            prompt = [end] * way.end_of_text + tokenizer.encode("Once upon a time")
            ended = 0
            for story in range(STORIES):
                sampling = SamplingOptions(seed=story, max_new_tokens=STORY_TOKENS)
                ended += len(generate(model, prompt, sampling, stop_id=end)) < STORY_TOKENS
            print(f"{number} {name:<46} seed {seed}  {steps:>5} steps  {bits:.3f} bits per byte  "
                  f"{ended:>2} of {STORIES} end  {seconds:.0f} s", flush=True)  # fmt: skip
            found.append(
                {"row": number, "name": name, "seed": seed, "steps": steps, "ended": ended,
                 "bits_per_byte": bits, "seconds": seconds}
            )  # fmt: skip
            options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
