"""From a network to text: sampling, KV cache, the batching engine, quantization, stories."""

from slm.generation.engine import generate, stream
from slm.generation.options import SamplingOptions

__all__ = ["SamplingOptions", "generate", "stream"]
