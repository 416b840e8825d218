"""slm: train a small language model from scratch and generate stories with it."""

__version__ = "0.1.0"
