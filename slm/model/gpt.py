"""GPT: a decoder-only transformer in the manner of GPT-2, from leaf to root.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"; the blocks are
those of Vaswani et al. 2017 (arXiv 1706.03762) with the norm moved in front of each sublayer.

Shape suffixes of local tensors:
    B batch    T query positions    S key positions    V vocabulary (vocab_size)
    C width (n_embd)    H heads (n_head)    D head size (C / H)    F hidden width of the MLP (4 C)
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are the classic TinyStories configuration.

    Raises:
        ValueError: A field is out of range, or `n_embd` is not a multiple of `n_head`.
    """

    block_size: int = 128
    """Context length in tokens: how far the model looks back."""
    vocab_size: int = 50257
    """Number of token ids; must be the tokenizer's (GPT-2: 50257)."""
    n_layer: int = 6
    """Number of transformer blocks."""
    n_head: int = 6
    """Attention heads per block; must divide n_embd."""
    n_embd: int = 384
    """Width of the residual stream."""
    dropout: float = 0.1
    """Probability of dropping an activation while training; 0 turns dropout off."""
    bias: bool = False
    """Whether linear layers and layer norms have a bias, as GPT-2's do."""

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it has to be 1 or more")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; every head needs "
                f"the same whole number of channels, such as n_embd "
                f"{self.n_head * max(1, round(self.n_embd / self.n_head))}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; it has to be at least 0 and below 1")


def attention_weights(queries: Tensor, keys: Tensor) -> Tensor:
    """Causal attention weights: softmax(Q Kᵀ / √D) with the future masked out.

    Args:
        queries: (B, H, T, D). The T queries are the last T of the S positions.
        keys: (B, H, S, D).

    Returns:
        Weights (B, H, T, S); each row sums to one and is zero right of the diagonal.
    """
    T, S, D = queries.size(-2), keys.size(-2), queries.size(-1)
    scores_BHTS = queries @ keys.transpose(-2, -1) / math.sqrt(D)
    future_TS = torch.ones(T, S, dtype=torch.bool, device=queries.device).triu(1 + S - T)
    return scores_BHTS.masked_fill(future_TS, float("-inf")).softmax(dim=-1)


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention in which a position sees itself and the past only.

    Attributes:
        manual: False computes by `F.scaled_dot_product_attention`, which picks the device's
            fastest kernel; True by `attention_weights`, written out. Both give the same result.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.manual = False
        self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Mixes each position with those before it: (B, T, C) to (B, T, C)."""
        q_BHTD, k_BHSD, v_BHSD = (
            part_BTC.unflatten(2, (self.n_head, -1)).transpose(1, 2)
            for part_BTC in self.qkv(x).chunk(3, dim=2)
        )
        dropout = self.dropout if self.training else 0.0
        if self.manual:
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
    """Two linear layers with GELU (Hendrycks & Gimpel 2016) between, at each position alone."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.n_embd, 4 * config.n_embd, bias=config.bias)
        self.down = nn.Linear(4 * config.n_embd, config.n_embd, bias=config.bias)
        self.residual_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Transforms each position: (B, T, C) to (B, T, C)."""
        hidden_BTF = F.gelu(self.up(x))
        out_BTC: Tensor = self.residual_dropout(self.down(hidden_BTF))
        return out_BTC


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.attention = CausalSelfAttention(config)
        self.mlp_norm = nn.LayerNorm(config.n_embd, bias=config.bias)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """One step along the residual stream: (B, T, C) to (B, T, C)."""
        x_BTC = x + self.attention(self.attention_norm(x))
        out_BTC: Tensor = x_BTC + self.mlp(self.mlp_norm(x_BTC))
        return out_BTC


@dataclass(frozen=True)
class ParameterCounts:
    """One model's size under the three conventions in use."""

    without_embeddings: int
    """Blocks and norms only: neither token nor position embeddings."""
    tied: int
    """Every parameter there is; the output head shares the token embedding's matrix."""
    untied: int
    """What the same model would have if the head owned a matrix of its own."""

    def __str__(self) -> str:
        return (
            f"{self.without_embeddings / 1e6:.2f} M without embeddings, "
            f"{self.tied / 1e6:.2f} M in all (head tied to the embedding), "
            f"{self.untied / 1e6:.2f} M if it were untied"
        )


class GPT(nn.Module):
    """Token and position embeddings, a stack of blocks, and a head tied to the embedding.

    Tying (Press & Wolf 2017, arXiv 1608.05859): the logit of a token is the dot product of the
    last hidden state with that token's embedding, so one V x C matrix serves both ends.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd, bias=config.bias)
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

    def hidden(self, tokens: Tensor) -> Tensor:
        """The final hidden states of a sequence, before the head.

        Args:
            tokens: Token ids, (B, T), int64, with T at most `block_size`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: T exceeds `block_size`.
        """
        T = tokens.size(1)
        limit = self.config.block_size
        if limit < T:
            raise ValueError(
                f"a sequence of {T} tokens does not fit into a context of {limit}; "
                f"crop it to its last {limit} tokens"
            )
        positions_T = torch.arange(T, device=tokens.device)
        x_BTC = self.token_embedding(tokens) + self.position_embedding(positions_T)
        x_BTC = self.embedding_dropout(x_BTC)
        for block in self.blocks:
            x_BTC = block(x_BTC)
        hidden_BTC: Tensor = self.norm(x_BTC)
        return hidden_BTC

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits over the vocabulary: (..., C) to (..., V)."""
        return F.linear(hidden, self.token_embedding.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at every position: ids (B, T) to logits (B, T, V)."""
        return self.unembed(self.hidden(tokens))

    def parameter_counts(self) -> ParameterCounts:
        """Counts the parameters under the three usual conventions."""
        total = sum(parameter.numel() for parameter in self.parameters())
        head = self.token_embedding.weight.numel()
        embeddings = head + self.position_embedding.weight.numel()
        return ParameterCounts(total - embeddings, total, total + head)
