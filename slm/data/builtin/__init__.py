"""A built-in corpus of small children's stories, made from a seed."""

from .stories import stories as stories
