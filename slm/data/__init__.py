"""From text to batches: tokenizer, sources, preparation, and the data module."""
