"""Does the scorecard fall when a good model is damaged? Noise on all matrices, and its score.

    python benchmarks/noise.py lightning_logs/version_0/checkpoints/best.ckpt

Gaussian noise of 0, 0.25, 0.5 and 1 standard deviations of each matrix; the means of the six
families' accuracy follow. The held-out stories are those of the checkpoint's own data.
"""

import sys
from pathlib import Path

import torch

from slm.evaluation.likelihood import score_pairs
from slm.evaluation.pairs import make_pairs
from slm.evaluation.texts import texts_of
from slm.training.checkpoint import open_checkpoint

PAIRS, SEED = 300, 1337


def main() -> None:
    """Prints a line for each amount of noise."""
    checkpoint = open_checkpoint(Path(sys.argv[1]))
    texts = texts_of(checkpoint, None, None)
    families = make_pairs(texts.held_out(20 * PAIRS), SEED, PAIRS)
    for amount in (0.0, 0.25, 0.5, 1.0):
        torch.manual_seed(SEED)
        model = checkpoint.make_model()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.dim() == 2:
                    weight += amount * weight.std() * torch.randn_like(weight)
        shares = {
            family: score_pairs(model, texts.tokenizer, pairs).share
            for family, pairs in families.items()
        }
        said = "  ".join(f"{family} {share:.1%}" for family, share in shares.items())
        print(f"noise {amount:4.2f}  score {sum(shares.values()) / len(shares):.1%}  {said}")


if __name__ == "__main__":
    main()
