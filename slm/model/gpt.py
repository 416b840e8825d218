"""GPT: a decoder-only transformer like GPT-2, from leaf to root.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the blocks are those of
Vaswani et al. 2017 (arXiv 1706.03762) with the norm in front of each sublayer.

Shape suffixes of local tensors:
    B batch    T query positions    S key positions    V vocabulary (vocab_size)
    C width (n_embd)    H heads (n_head)    D head size (C / H)    R pairs of channels in it (D / 2)
    F hidden width of the MLP
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from slm.model.config import GPTConfig
from slm.model.reference import attention_weights


class AttentionCache(Protocol):
    """A KV cache: keys and values of earlier positions, so that they are not recomputed.

    `slm.generation.cache.CacheView` is one.
    """

    @property
    def positions(self) -> Tensor:
        """Positions of the tokens of this pass: (T,), or (B, T) if rows differ."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Stores keys and values, and attends to all stored ones: all (B, H, T, D)."""


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + ε) times a gain (Zhang & Sennrich 2019, arXiv 1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        """In the precision of the gain, for which torch has a fused kernel."""
        return super().forward(x if self.weight is None else x.type_as(self.weight)).type_as(x)


def make_norm(config: GPTConfig) -> nn.Module:
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) or RMSNorm, over the width."""
    if config.norm == "rms":
        return RMSNorm(config.n_embd, config.norm_eps)
    return nn.LayerNorm(config.n_embd, config.norm_eps, bias=config.bias)


def make_qk_norm(config: GPTConfig) -> nn.Module:
    """Normalises the queries or the keys of each head (Henry et al. 2020, arXiv 2010.04245)."""
    if not config.qk_norm:
        return nn.Identity()
    head_size = config.n_embd // config.n_head
    return RMSNorm(head_size, config.norm_eps if config.qk_gain else None, config.qk_gain)


def rotary_angles(positions: int, head_size: int) -> Tensor:
    """Cosine and sine of position times 10000^(-2 r / D), with r < D / 2: (2, positions, D / 2)."""
    frequencies_R = 10_000.0 ** (-torch.arange(0, head_size, 2) / head_size)
    angles_TR = torch.outer(torch.arange(positions), frequencies_R)
    return torch.stack((angles_TR.cos(), angles_TR.sin()))


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (Su et al. 2021, arXiv 2104.09864).

    Channels r and r + D / 2 are a point in a plane that is rotated by the angle of its position, so
    that the product of a query and a key depends on their distance, not on their positions. `x`
    holds queries or keys, (B, H, T, D); `angles` cosine and sine for each position, (2, T, D / 2),
    or for each row and position, (2, B, 1, T, D / 2).
    """
    cosine_TR, sine_TR = angles
    a_BHTR, b_BHTR = x.chunk(2, dim=-1)
    return torch.cat(
        (a_BHTR * cosine_TR - b_BHTR * sine_TR, a_BHTR * sine_TR + b_BHTR * cosine_TR), dim=-1
    ).type_as(x)


def _compiled_is_faster(queries: Tensor) -> bool:
    """Whether the plain definition, fused by torch.compile, beats the device's own kernel.

    On CPUs, for contexts short enough that T x T weights stay near the cache.
    """
    compiling = torch.compiler.is_compiling()
    return compiling and queries.device.type == "cpu" and queries.size(-2) <= 256


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a position attends to itself and earlier ones only.

    Equals `reference.attention`, computed by the device's fastest kernel.
    """

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.q_norm, self.k_norm = make_qk_norm(config), make_qk_norm(config)
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.residual_dropout = nn.Dropout(config.dropout)

    def heads(self, x: Tensor, angles: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads: (B, T, C) to (B, H, T, D) each."""
        qkv_BT3HD = self.qkv(x).unflatten(2, (3, self.n_head, -1))
        q_BHTD, k_BHTD, v_BHTD = qkv_BT3HD.permute(2, 0, 3, 1, 4).unbind()
        q_BHTD, k_BHTD = self.q_norm(q_BHTD), self.k_norm(k_BHTD)
        if angles is not None:
            q_BHTD, k_BHTD = rotate(q_BHTD, angles), rotate(k_BHTD, angles)
        return q_BHTD, k_BHTD, v_BHTD

    def forward(
        self, x: Tensor, angles: Tensor | None = None, cache: AttentionCache | None = None
    ) -> Tensor:
        """Mixes each position with those before it: (B, T, C) to (B, T, C).

        `angles` are those of the T positions, None where positions are learned. `cache` holds keys
        and values of earlier positions, to which these are added.
        """
        q_BHTD, k_BHSD, v_BHSD = self.heads(x, angles)
        dropout = self.dropout if self.training else 0.0
        if cache is not None:
            mixed_BHTD = cache.attend(self.layer, q_BHTD, k_BHSD, v_BHSD)
        elif _compiled_is_faster(q_BHTD):
            weights_BHTS = F.dropout(attention_weights(q_BHTD, k_BHSD), dropout)
            mixed_BHTD = weights_BHTS @ v_BHSD
        else:
            mixed_BHTD = F.scaled_dot_product_attention(
                q_BHTD, k_BHSD, v_BHSD, dropout_p=dropout, is_causal=True
            )
        mixed_BTC = mixed_BHTD.transpose(1, 2).flatten(2)
        out_BTC: Tensor = self.residual_dropout(self.proj(mixed_BTC))
        return out_BTC


class MLP(nn.Module):
    """Two linear layers with a nonlinearity between, at each position alone.

    GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), or SwiGLU (Shazeer 2020, arXiv 2002.05202):
    silu(gate) * up.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.gated = config.mlp == "swiglu"
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"
        width = config.hidden_width
        self.up = nn.Linear(config.n_embd, (1 + self.gated) * width, bias=config.bias)
        self.down = nn.Linear(width, config.n_embd, bias=config.bias)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms each position: (B, T, C) to (B, T, C)."""
        hidden_BTF = self.up(x)
        if self.gated:
            gate_BTF, hidden_BTF = hidden_BTF.chunk(2, dim=-1)
            hidden_BTF = F.silu(gate_BTF) * hidden_BTF
        else:
            hidden_BTF = F.gelu(hidden_BTF, approximate=self.approximate)
        out_BTC: Tensor = self.residual_dropout(self.down(hidden_BTF))
        return out_BTC


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = make_norm(config)
        self.attention = CausalSelfAttention(config, layer)
        self.mlp_norm = make_norm(config)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, angles: Tensor | None = None, cache: AttentionCache | None = None
    ) -> Tensor:
        """One step along the residual stream: (B, T, C) to (B, T, C)."""
        x_BTC = x + self.attention(self.attention_norm(x), angles, cache)
        out_BTC: Tensor = x_BTC + self.mlp(self.mlp_norm(x_BTC))
        return out_BTC


@dataclass(frozen=True)
class ParameterCounts:
    """One model's size under the three conventions in use."""

    without_embeddings: int
    """Blocks and norms only: no token or position embeddings, no head."""
    tied: int
    """Everything, if the output head shares the token embedding's matrix."""
    untied: int
    """Everything, if the head has a matrix of its own."""
    is_tied: bool = True
    """Which of the two this model is."""

    def __str__(self) -> str:
        tied, untied = f"{self.tied / 1e6:.2f} M", f"{self.untied / 1e6:.2f} M"
        return f"{self.without_embeddings / 1e6:.2f} M without embeddings, " + (
            f"{tied} in all (head tied to the embedding), {untied} if it were untied"
            if self.is_tied
            else f"{untied} in all (head of its own), {tied} if it were tied to the embedding"
        )


class GPT(nn.Module):
    """Embeddings, a stack of blocks, and a head from the last hidden state to logits.

    Tying (Press & Wolf 2017, arXiv 1608.05859): the logit of a token is the dot product of the
    last hidden state with that token's embedding, so one V x C matrix serves both ends.

    With `recompute`, training keeps only each block's input and recomputes the rest in the backward
    pass (Chen et al. 2016, arXiv 1604.06174): less memory, a third more time.
    """

    angles: Tensor
    head: nn.Module | None

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        if config.position == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        else:
            angles = rotary_angles(config.block_size, config.n_embd // config.n_head)
            self.register_buffer("angles", angles, persistent=False)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        head = None if config.tied else nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.register_module("head", head)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        """GPT-2's initialisation: N(0, 0.02), and 0.02 / √(2 n_layer) where a sublayer ends.

        The 2 n_layer sublayers add up along the residual stream; the smaller deviation of their
        last matrices keeps the variance of that sum independent of depth.
        """
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for last in (module.attention.proj, module.mlp.down):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def hidden(self, tokens: Tensor, cache: AttentionCache | None = None) -> Tensor:
        """The final hidden states (B, T, C) of token ids (B, T), int64, before the head.

        `cache` comes from `KVCache.grow`; the tokens then continue the sequences it holds. Without
        one they are whole sequences.

        Raises:
            ValueError: T exceeds `block_size`.
        """
        return self.from_embeddings(self.token_embedding(tokens), cache)

    def from_embeddings(self, embeddings: Tensor, cache: AttentionCache | None = None) -> Tensor:
        """`hidden`, from the tokens' embeddings (B, T, C) on."""
        T = embeddings.size(1)
        limit = self.config.block_size
        if limit < T:
            raise ValueError(
                f"a sequence of {T} tokens does not fit into a context of {limit}; "
                f"crop it to its last {limit} tokens"
            )
        x_BTC, angles = embeddings, None
        if self.config.position == "learned":
            positions = (
                torch.arange(T, device=embeddings.device) if cache is None else cache.positions
            )
            x_BTC = x_BTC + self.position_embedding(positions)
        else:
            angles = self.angles[:, :T]
            if cache is not None:
                angles = self.angles[:, cache.positions]
                angles = angles if angles.dim() == 3 else angles.unsqueeze(2)  # one head for all
        x_BTC = self.embedding_dropout(x_BTC)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, angles, cache, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, angles, cache)
        hidden_BTC: Tensor = self.norm(x_BTC)
        return hidden_BTC

    @property
    def head_weight(self) -> Tensor:
        """The output head's matrix, (V, C)."""
        weight = (self.head or self.token_embedding).weight
        assert isinstance(weight, Tensor)
        return weight

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary: (..., C) to (..., V)."""
        if self.head is None:
            return F.linear(hidden, self.token_embedding.weight)
        logits_V: Tensor = self.head(hidden)
        return logits_V

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position: ids (B, T) to logits (B, T, V)."""
        return self.unembed(self.hidden(tokens))

    def parameter_counts(self) -> ParameterCounts:
        """Counts the parameters under the three usual conventions."""
        total = sum(parameter.numel() for parameter in self.parameters())
        matrix = self.token_embedding.weight.numel()
        tied = total if self.config.tied else total - matrix
        embeddings = matrix
        if self.config.position == "learned":
            embeddings += self.position_embedding.weight.numel()
        return ParameterCounts(tied - embeddings, tied, tied + matrix, self.config.tied)
