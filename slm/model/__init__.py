"""The mathematics: the network, sampling and generation. Needs torch and nothing else."""

from slm.model.config import GPTConfig
from slm.model.generation import generate, stream
from slm.model.gpt import GPT
from slm.model.options import SamplingOptions

__all__ = ["GPT", "GPTConfig", "SamplingOptions", "generate", "stream"]
