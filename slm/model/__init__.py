"""The network and nothing else. Needs torch only."""

from slm.model.config import GPTConfig
from slm.model.gpt import GPT

__all__ = ["GPT", "GPTConfig"]
