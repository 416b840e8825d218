"""How good a model's stories are: minimal pairs, generated stories, a judge."""
