"""Published results on TinyStories, as far as they can be compared."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Peer:
    """A published figure. All are on the data set's own validation split."""

    name: str
    model: str
    tokenizer: str
    nats_per_token: float | None
    bits_per_byte: float | None
    source: str


PEERS = (
    Peer("the common notebook", "30 M, context 128", "GPT-2, 50,257", 2.39, 0.852,
         "notebooks that share one set of hyperparameters; bits per byte by 4.045 bytes a token"),
    Peer("tinystories-quickstart", "12 layers of 384, context 512", "own, 8,192", None, 0.526,
         "github.com/Activated-AI/tinystories-quickstart, 0.3645 nats per byte"),
    Peer("llama2.c 260K", "260 K, context 512", "own, 512", 1.297, None,
         "github.com/karpathy/llama2.c, README"),
    Peer("llama2.c 15M", "15 M, context 256", "Llama 2, 32,000", 1.072, None,
         "github.com/karpathy/llama2.c, README"),
    Peer("llama2.c 42M", "42 M, context 1024", "Llama 2, 32,000", 0.847, None,
         "github.com/karpathy/llama2.c, README"),
    Peer("llama2.c 110M", "110 M, context 1024", "Llama 2, 32,000", 0.760, None,
         "github.com/karpathy/llama2.c, README"),
    Peer("CS336, assignment 1", "17 M in blocks, context 256", "own, 10,000", 1.45, None,
         "the goal after 328 M tokens, as the course states it"),
    Peer("the paper, 8 layers of 768", "8 layers of 768, context 512", "GPT-Neo's, top 10,000",
         1.18, None, "Eldan & Li 2023, arXiv 2305.07759, figure 4"),
)  # fmt: skip
