"""The arithmetic of training."""

from slm.model.config import GPTConfig


def training_flops_per_token(config: GPTConfig) -> int:
    """Floating-point operations of forward and backward for one token of a full window.

    6 for each weight that multiplies (two forward, four backward), including the head and not the
    lookups in embeddings, and 12 L T C for attention, as if it covered all T positions (Chowdhery
    et al. 2022, PaLM, arXiv 2204.02311, appendix B). Recomputed blocks do not count.
    """
    C = config.n_embd
    mlp = (3 if config.mlp == "swiglu" else 2) * config.hidden_width * C
    weights = config.n_layer * (4 * C * C + mlp) + config.vocab_size * C
    return 6 * weights + 12 * config.n_layer * config.block_size * C
