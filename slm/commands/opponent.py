"""transformers with our weights, to measure against."""

from collections.abc import Sequence
from typing import Any

import torch

from slm.model import GPT, SamplingOptions
from slm.reports.telling_speed import Teller, weight_bytes


def transformers_tellers(
    model: GPT, kinds: Sequence[str], device: str, options: SamplingOptions
) -> dict[str, tuple[Teller, int]]:
    """The same weights in transformers' GPT-2."""
    from slm.sharing.gpt2 import to_transformers

    tellers = {}
    for kind in kinds:
        theirs = to_transformers(model).to(device)
        if kind == "bf16":
            theirs = theirs.to(torch.bfloat16)
        read = weight_bytes(theirs.transformer, without=["wpe"])  # wte is the head
        tellers[f"transformers {kind}"] = (_their_teller(theirs, device, options), read)
    return tellers


def _their_teller(theirs: Any, device: str, options: SamplingOptions) -> Teller:
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
