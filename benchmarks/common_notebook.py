"""What the training of the notebook that most TinyStories projects descend from costs.

Usage:

    python benchmarks/common_notebook.py PREPARED --tokens 1.3e6 --seeds 1 2 --out notebook.json

PREPARED is a folder that `slm prepare` made, with a vocabulary of 4,096. A small classic GPT
(2 layers, width 128, context 128) is trained on the same number of tokens in every row; row 0 does
what the notebook does where it trains in float16, row 1 what it does in bfloat16, and each further
row repairs one thing and keeps the repairs above it, but for the last, which undoes one. All rows
compute in bfloat16: of float16 only the scaling of the loss, and what follows from it, is imitated.

The notebook takes an optimizer step after 32 micro-batches of 32 x 128 tokens; here they have
1 x 128 and go through the network together, which gives the same mean gradient. So a run of a
sixtieth of the notebook's tokens still has 317 optimizer steps (the notebook: 625).

Bits per byte are over the text of the held-out stories: with end-of-text between them, which then
has to be predicted, too, where the model was trained so, and without where it was not. Also
counted: how many of twenty stories come to an end by themselves within 250 tokens.
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
from slm.generation import SamplingOptions, generate
from slm.model import GPT, GPTConfig

BATCH, CONTEXT, LAYERS, HEADS, WIDTH = 32, 128, 2, 2, 128
STORIES, STORY_TOKENS = 20, 250
LOSS_SCALE = 2.0**16  # what torch's GradScaler begins with; it does not rise for 2,000 steps
NOTEBOOK_PARAMETERS = 30e6


@dataclass(frozen=True)
class Way:
    """How a row trains; the defaults are the notebook's way."""

    unscaled: bool = False
    """Whether gradients are divided by the loss scale before they are clipped, not after."""
    falling: bool = False
    """Whether the learning rate falls, to a tenth, after warming up."""
    groups: bool = False
    """Whether vectors are kept from weight decay."""
    batch: int = BATCH
    """Windows per optimizer step."""
    end_of_text: bool = False
    """Whether stories are separated."""
    peak: float = 5e-4
    """Highest learning rate."""
    dropout: float = 0.1
    """The notebook's; hardly anything is seen twice."""


AS_PUBLISHED = Way()
ROWS = {
    "as published, in float16": AS_PUBLISHED,
    "as published, in bfloat16: clipping without a scale": (
        w := replace(AS_PUBLISHED, unscaled=True)
    ),
    "a learning rate that falls": (w := replace(w, falling=True)),
    "no decay of vectors": (w := replace(w, groups=True)),
    "a quarter of the batch, four times the steps": (w := replace(w, batch=BATCH // 4)),
    "end-of-text between stories": (w := replace(w, end_of_text=True)),
    "learning rate 3e-3": (w := replace(w, peak=3e-3)),
    "no dropout": (w := replace(w, dropout=0.0)),
    "for comparison: row 7, its learning rate rising": replace(w, falling=False),
}


def rate(way: Way, done: float) -> float:
    """The learning rate when a share of the run is done."""
    warmup = 0.05  # 1,000 of 20,000 in the notebook
    cosine = 0.5 * (1 + math.cos(math.pi * (done - warmup) / (1 - warmup)))
    if not way.falling:
        # LinearLR from a third to 1e-4, then CosineAnnealingLR from there *up* to its eta_min.
        if done < warmup:
            return 1e-4 * (1 / 3 + 2 / 3 * done / warmup)
        return way.peak + (1e-4 - way.peak) * cosine
    return way.peak * (done / warmup if done < warmup else 0.1 + 0.9 * cosine)


def train(way: Way, ids: np.ndarray, vocab_size: int, tokens: int, seed: int) -> tuple[GPT, int]:
    """Trains one row; returns the model and the number of optimizer steps."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(CONTEXT, vocab_size, LAYERS, HEADS, WIDTH, way.dropout, bias=True))
    parameters = list(model.parameters())
    vectors = [p for p in parameters if p.dim() < 2 and way.groups]
    others = [p for p in parameters if p.dim() >= 2 or not way.groups]
    # A gradient clipped while scaled has a norm of 0.5 / 65,536: with 30 M parameters 1.4e-9 each,
    # as little as the notebook's epsilon of 1e-9. With fewer parameters each has more.
    epsilon = 1e-9 * math.sqrt(NOTEBOOK_PARAMETERS / sum(p.numel() for p in parameters))
    optimizer = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=1e-4, betas=(0.9, 0.95), eps=epsilon,
    )  # fmt: skip
    random = np.random.default_rng(seed)
    steps = tokens // (way.batch * CONTEXT)
    for step in range(steps):
        starts = random.integers(0, len(ids) - CONTEXT - 1, way.batch)
        rows = torch.from_numpy(ids[starts[:, None] + np.arange(CONTEXT + 1)].astype(np.int64))
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
        (LOSS_SCALE * loss).backward()
        if not way.unscaled:
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad /= LOSS_SCALE
        if way.unscaled:
            torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        for group in optimizer.param_groups:
            group["lr"] = rate(way, (step + 1) / steps)
        optimizer.step()
        optimizer.zero_grad()
    return model, steps


@torch.inference_mode()
def bits_per_byte(model: GPT, ids: np.ndarray, byte_lengths: np.ndarray) -> float:
    """Over a text in consecutive windows, every token predicted once but for the last few."""
    model.eval()
    count = (len(ids) - 1) // CONTEXT * CONTEXT
    inputs = torch.from_numpy(ids[:count].astype(np.int64)).view(-1, CONTEXT)
    targets = torch.from_numpy(ids[1 : count + 1].astype(np.int64)).view(-1, CONTEXT)
    nats = sum(
        float(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"))
        for x, y in zip(inputs.split(64), targets.split(64), strict=True)
    )
    return nats / math.log(2) / float(byte_lengths[ids[1 : count + 1]].sum())


def main() -> None:
    """Trains every row with every seed, and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--tokens", type=float, default=1.3e6)
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
    byte_lengths = tokenizer.byte_lengths()  # end-of-text has none
    found = []
    for number, (name, way) in enumerate(ROWS.items()):
        for seed in options.seeds if number in options.rows else ():
            ids, held_out = (
                ids if way.end_of_text else ids[ids != end]
                for ids in (splits["train"], splits["validation"])
            )
            begin = time.perf_counter()
            model, steps = train(way, ids, tokenizer.n_vocab, int(options.tokens), seed)
            seconds = time.perf_counter() - begin
            bits = bits_per_byte(model, held_out, byte_lengths)
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
