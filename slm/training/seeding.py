"""Random state of torch, on the CPU and on one device."""

import torch


def seed_generators(device: torch.device, seed: int) -> None:
    """Seeds torch's random numbers on the CPU and on a device.

    `torch.manual_seed` seeds every kind of device each time, which takes a tenth of a millisecond.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
