"""What fast weights cost: bits per byte of the same text under each kind."""

from collections.abc import Mapping
from dataclasses import fields

import torch

from slm.data.batches import IGNORED, ConsecutiveWindows, TokenFile
from slm.data.cleaning import Cleaning
from slm.data.corpus import Corpus
from slm.data.manifest import Manifest
from slm.data.preparation import find_folder
from slm.data.tokenizer import Tokenizer
from slm.errors import UserError
from slm.model import GPT
from slm.training.checkpoint import Checkpoint
from slm.training.metrics import LanguageModelMetrics


def quantization_cost(
    checkpoint: Checkpoint, models: dict[str, GPT], tokens: int | None
) -> tuple[dict[str, float] | None, str]:
    """What fast weights cost on the validation split that the checkpoint was trained beside.

    Args:
        checkpoint: Says which data, and where they lie.
        models: Its network, by the kind of its weights.
        tokens: Read about this many tokens from the front; None reads all, 0 nothing.

    Returns:
        Bits per byte by kind, or None if the data are not there any more, and a line about it.
    """
    if tokens == 0:
        return None, "Loss       not measured: --loss_tokens 0"
    known = {field.name for field in fields(Corpus)}
    given = {name: value for name, value in checkpoint.data_options.items() if name in known}
    try:
        folder = find_folder(Corpus(**given | {"clean": Cleaning(**given.get("clean", {}))}))
        manifest = Manifest.load(folder)
        checkpoint.check_tokenizer(manifest.tokenizer)
        trained = (checkpoint.entry["data"] or {}).get("splits", {}).get("validation", {})
        if manifest.splits["validation"].sha256 != trained.get("sha256"):
            raise UserError(f"{folder} holds other data than the checkpoint's", "", "")
    except UserError as error:
        return None, f"Loss       not measured: {error.found}"
    file = TokenFile(Manifest.path(folder, "validation"), manifest.dtype)
    windows = ConsecutiveWindows(file, checkpoint.gpt.block_size, 4)
    found, predicted = bits_per_byte(models, windows, checkpoint.make_tokenizer(), tokens)
    base = found.get("fp32")
    said = ", ".join(
        f"{kind} {bits:.4f}" + (f" ({bits - base:+.5f})" if base and kind != "fp32" else "")
        for kind, bits in found.items()
    )
    return found, f"Loss       {said} bits per byte on {predicted:,} tokens of {folder}"


def bits_per_byte(
    models: Mapping[str, GPT],
    windows: ConsecutiveWindows,
    tokenizer: Tokenizer,
    tokens: int | None = None,
) -> tuple[dict[str, float], int]:
    """What the same text costs under several networks.

    Args:
        models: By name.
        windows: The text.
        tokenizer: Its tokenizer.
        tokens: Read about this many tokens from the front; None reads all.

    Returns:
        Bits per byte by name, and how many tokens were predicted.
    """
    metrics = {name: LanguageModelMetrics(tokenizer.byte_lengths()) for name in models}
    predicted = 0
    with torch.inference_mode():
        for index in range(len(windows)):
            inputs_BT, targets_BT = windows[index]
            for name, model in models.items():
                device = model.token_embedding.weight.device
                logits_BTV = model(inputs_BT.to(device))
                metrics[name].update(logits_BTV.cpu(), targets_BT)
            predicted += int((targets_BT != IGNORED).sum())
            if tokens is not None and predicted >= tokens:
                break
    return {name: float(m.compute()["bits_per_byte"]) for name, m in metrics.items()}, predicted
