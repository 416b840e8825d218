"""A built-in corpus of small children's stories, made from a seed."""

from slm.data.builtin.stories import stories as stories
