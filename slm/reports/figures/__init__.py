"""Pictures of a run: curves, weights, attention, next tokens."""
