"""How the processes of a run find each other: torchrun, SLURM, or started by the first one."""

from datetime import timedelta

from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from slm.processes import in_slurm_job, started_by_srun, started_by_torchrun

PATIENCE = timedelta(minutes=10)
"""How long a process waits for another one before it gives up; torch's default for GPUs is 30
minutes. A validation with its story and figures, for which the others wait, has to fit in."""


def cluster_environments() -> list[ClusterEnvironment]:
    """The plugin for Lightning, where its own detection would be wrong; at most one.

    Within a SLURM job Lightning believes to be one of several tasks even where `srun` has not
    started it, as in an interactive shell; and where it has, Lightning would resume from a
    checkpoint of its own that nobody named.
    """
    if started_by_torchrun() or not in_slurm_job():
        return []
    return [SLURMEnvironment(auto_requeue=False) if started_by_srun() else LightningEnvironment()]
