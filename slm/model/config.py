"""The shape and the architecture options of a GPT."""

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. The defaults are the classic TinyStories configuration, as GPT-2.

    Raises:
        ValueError: A field is out of range, or two do not fit together.
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
    position: Literal["learned", "rotary"] = "learned"
    """How positions enter: an embedding of each position is added (`learned`), or queries and keys
    are rotated by an angle that grows with the position (`rotary`)."""
    norm: Literal["layer", "rms"] = "layer"
    """LayerNorm, or RMSNorm: the same without subtracting the mean."""
    qk_norm: bool = False
    """Whether each head's queries and keys are scaled to unit root mean square."""
    qk_gain: bool = False
    """With qk_norm: whether a learned gain per channel, shared by the heads, follows, as in
    Qwen3."""
    norm_eps: float = 1e-5
    """Epsilon of every norm; QK-norm without a gain uses torch's default."""
    mlp: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    """The MLP's nonlinearity: GELU, its approximation by tanh that OpenAI's GPT-2 has, or a gate
    (SwiGLU)."""
    mlp_width: int | None = None
    """Hidden width of the MLP; null means 4 n_embd, for swiglu, which has three matrices, 8/3
    n_embd rounded to a multiple of 32: about as many parameters."""
    tied: bool = True
    """Whether the output head is the token embedding's matrix, or has its own."""

    def __post_init__(self) -> None:
        for name in ("block_size", "vocab_size", "n_layer", "n_head", "n_embd"):
            check(self, name, getattr(self, name) >= 1, "1 or more")
        for name, choices in _CHOICES.items():
            check(self, name, getattr(self, name) in choices, " or ".join(choices))
        width = self.mlp_width
        check(self, "mlp_width", width is None or width >= 1, "1 or more, or null")
        check(self, "norm_eps", 0.0 < self.norm_eps < 1.0, "above 0 and below 1")
        check(self, "qk_gain", self.qk_norm or not self.qk_gain, "false without qk_norm")
        check(self, "dropout", 0.0 <= self.dropout < 1.0, "at least 0 and below 1")
        if self.n_embd % self.n_head:
            raise ValueError(
                f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}; every head needs "
                f"the same whole number of channels, such as n_embd "
                f"{self.n_head * max(1, round(self.n_embd / self.n_head))}"
            )
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(
                f"a head has {self.n_embd // self.n_head} channels, with position rotary; an even "
                f"number, which can be rotated in pairs, such as n_embd {2 * self.n_embd}"
            )

    @property
    def hidden_width(self) -> int:
        """Hidden width of the MLP."""
        gated = self.mlp == "swiglu"
        default = 32 * max(1, round(self.n_embd / 12)) if gated else 4 * self.n_embd
        return self.mlp_width or default

    def to_plain(self) -> dict[str, Any]:
        """The fields in plain types, with the MLP's width as a number."""
        return asdict(self) | {"mlp_width": self.hidden_width}


_CHOICES = {
    "position": ("learned", "rotary"),
    "norm": ("layer", "rms"),
    "mlp": ("gelu", "gelu_tanh", "swiglu"),
}


def check(options: object, field: str, valid: bool, expected: str) -> None:
    """Raises ValueError, "FIELD is VALUE; it must be EXPECTED", unless a field is valid."""
    if not valid:
        raise ValueError(f"{field} is {getattr(options, field)}; it must be {expected}")
