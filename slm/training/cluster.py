"""How the processes of a run find each other: torchrun, SLURM, or started by the first one."""

from datetime import timedelta
from typing import Any

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from slm.errors import UserError
from slm.model import GPT
from slm.processes import in_slurm_job, started_by_srun, started_by_torchrun

PATIENCE = timedelta(minutes=10)
"""How long a process waits for another one; torch's default for GPUs is 30 minutes. It must exceed
a validation with its story and figures, for which the others wait."""


def cluster_environments() -> list[ClusterEnvironment]:
    """The plugin for Lightning if its own detection would be wrong; at most one.

    In a SLURM job Lightning assumes that it is one of several tasks, even if `srun` has not started
    it, as in an interactive shell; if it has, Lightning would resume from a checkpoint of its own.
    """
    if started_by_torchrun() or not in_slurm_job():
        return []
    return [SLURMEnvironment(auto_requeue=False) if started_by_srun() else LightningEnvironment()]


def fsdp2(devices: Any, nodes: int) -> ModelParallelStrategy:
    """The strategy that shards weights and optimizer state over the devices of all machines.

    Raises:
        UserError: The number of devices is not given.
    """
    if not str(devices).isdigit():
        raise UserError(
            f"--trainer.strategy fsdp2 with --trainer.devices {devices}",
            "the number of devices on each machine",
            "--trainer.devices 2",
        )
    return ModelParallelStrategy(
        data_parallel_size=int(devices) * nodes,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,  # one file, as every verb expects it
        timeout=PATIENCE,
    )


def shard(model: GPT, mesh: DeviceMesh, optimizer: str, compile: bool) -> None:
    """Shards a network for FSDP2 (Zhao et al. 2023, arXiv 2304.11277), block by block.

    Embedding and head, which are one matrix if tied, belong to the outermost unit.

    Raises:
        UserError: Optimizer or compilation need whole weights.
    """
    if optimizer != "adamw" or compile:
        option = "--model.compile true" if compile else f"--model.optimizer.name {optimizer}"
        raise UserError(
            f"{option} with --trainer.strategy fsdp2, which shards the weights",
            "AdamW, without compiling",
            "--trainer.strategy ddp: a model of this size fits on each device",
        )
    for unit in (*model.blocks, model):
        fully_shard(unit, mesh=mesh["data_parallel"])
