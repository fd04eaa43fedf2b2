"""hydra/launcher=slurm. Hydra finds launchers only in a package of this name; the work is done in train/jobs/cluster.py."""

import copy
from collections.abc import Sequence
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict


class SlurmLauncher(Launcher):
    """Submits the jobs of a sweep, waits for them and returns their scores.

    Args: options: keys of conf/hydra/launcher/slurm.yaml.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader, self.config = hydra_context.config_loader, config
        self.sweep = task_function.sweep  # type: ignore[attr-defined]  # train/jobs/cli.py

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from train.jobs.cluster import Resources, run_jobs  # Hydra imports every plugin at every start

        configs = []
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            config = self.loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                config.hydra.job.id = config.hydra.job.num = number
            configs.append(config)
        scores = run_jobs(self.sweep, configs, make_current, Resources(**self.options))
        return [JobReturn(_return_value=score, status=JobStatus.COMPLETED) for score in scores]


def make_current(config: DictConfig) -> None:
    """Makes ${hydra:…} and HydraConfig.get() refer to this configuration, of which a copy is kept."""
    HydraConfig.instance().set_config(copy.deepcopy(config))
