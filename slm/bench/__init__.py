"""How fast training and generation are, against baselines."""
