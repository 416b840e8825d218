"""slm: train a small language model from scratch and let it tell stories."""

__version__ = "0.1.0"
