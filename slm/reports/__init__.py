"""Looking at a run: figures."""
