"""How good a story model is: minimal pairs, generated stories, loss, and an optional judge."""
