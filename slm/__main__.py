"""Lets `python -m slm` do what `slm` does."""

from slm.cli import run

if __name__ == "__main__":
    run()
