"""What several GPUs are to be expected to give: communication against computation, by arithmetic.

    python benchmarks/scaling.py

Nothing is measured here but the speed of one GPU, which is taken from a report. Data-parallel
training (DDP) adds an all-reduce of all gradients to each step. Gradients of the blocks travel
during the backward pass; that of the tied embedding is complete only at its very end.
"""

from dataclasses import dataclass
from pathlib import Path

from slm.commands.parsing.configs import read_config
from slm.model import GPT, GPTConfig

CONFIGS = Path(__file__).parent.parent / "configs"
RATES = {"small": 1_567_326, "medium": 1_070_847}
"""Tokens per second on one H200 in bf16-mixed, benchmarks/2026-11-26-gpu.md."""
BYTES = 4  # per gradient: float32
BACKWARD = 2 / 3  # share of a step in which gradients become known
HOP = 20e-6  # seconds of latency per step of a ring within a machine
FAR_HOP = 40e-6  # the same between machines
NVLINK = 360e9  # bytes per second per GPU that an all-reduce reaches, of 450 each way
IN_MACHINE = 8  # GPUs


@dataclass(frozen=True)
class Network:
    """GPUs, and what connects the machines they are in."""

    name: str
    gpus: int
    between: float = 0.0
    """Bytes per second from machine to machine for each GPU."""

    def all_reduce(self, size: float) -> float:
        """Seconds to sum `size` bytes over all GPUs (ring; Patarasuk & Yuan 2009).

        Within each machine first; then each GPU sums its eighth with those of other machines.
        """
        if self.gpus == 1:
            return 0.0
        near = min(self.gpus, IN_MACHINE)
        seconds = 2 * (near - 1) * (size / near / NVLINK + HOP)
        machines = self.gpus // near
        if machines > 1:
            share = size / near
            seconds += 2 * (machines - 1) * (share / machines / self.between + FAR_HOP)
        return seconds


NETWORKS = (
    Network("8 GPUs, NVLink", 8),
    Network("64 GPUs, 400 Gbit/s per GPU", 64, 0.8 * 400e9 / 8),
    Network("64 GPUs, 25 Gbit/s per machine", 64, 0.8 * 25e9 / 8 / IN_MACHINE),
)


def main() -> None:
    """Prints a Markdown table."""
    print("| model | machine | tokens per GPU and step | step without, with waiting | efficiency |")
    print("| --- | --- | --- | --- | --- |")
    for name, rate in RATES.items():
        options = read_config(CONFIGS / f"{name}.yaml")
        gpt = GPT(GPTConfig(**options["model"]["gpt"]))
        embedding = gpt.token_embedding.weight.numel() * BYTES
        rest = gpt.parameter_counts().tied * BYTES - embedding
        for network in NETWORKS:
            for tokens in (32_768, 8_192):
                compute = tokens / rate
                hidden = max(0.0, network.all_reduce(rest) - BACKWARD * compute)
                wait = network.all_reduce(embedding) + hidden
                print(
                    f"| {name} ({(embedding + rest) / BYTES / 1e6:.0f} M) | {network.name} "
                    f"| {tokens:,} ({tokens * network.gpus / 1e6:.2f} M in all) "
                    f"| {1e3 * compute:.1f}, {1e3 * (compute + wait):.1f} ms "
                    f"| {compute / (compute + wait):.0%} |"
                )


if __name__ == "__main__":
    main()
