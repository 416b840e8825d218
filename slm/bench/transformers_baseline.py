"""transformers with our weights, to measure against."""

from collections.abc import Sequence
from typing import Any

import torch

from slm.bench.generation_speed import GenerateFn, weight_bytes
from slm.generation import SamplingOptions
from slm.model import GPT


def transformers_baselines(
    model: GPT, kinds: Sequence[str], device: str, options: SamplingOptions
) -> dict[str, tuple[GenerateFn, int]]:
    """The same weights in transformers' GPT-2."""
    from slm.export.gpt2 import to_transformers

    generators = {}
    for kind in kinds:
        theirs = to_transformers(model).to(device)
        if kind == "bf16":
            theirs = theirs.to(torch.bfloat16)
        read = weight_bytes(theirs.transformer, without=["wpe"])  # wte is the head
        generators[f"transformers {kind}"] = (_baseline(theirs, device, options), read)
    return generators


def _baseline(theirs: Any, device: str, options: SamplingOptions) -> GenerateFn:
    def tell(prompts: Sequence[Sequence[int]], tokens: int) -> None:
        ids_BT = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            theirs.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                do_sample=options.temperature > 0,
                temperature=options.temperature,
                top_k=options.top_k,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
                pad_token_id=theirs.config.eos_token_id,
            )

    return tell
