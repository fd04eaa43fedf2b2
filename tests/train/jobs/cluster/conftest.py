"""The SLURM cluster of the tests, started once for all of them."""

from collections.abc import Iterator

import pytest

from tests.train.jobs.cluster.slurm import Cluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A running cluster of this host with 4 CPUs to give away; skips where SLURM can't be started."""
    if reason := why_not():
        pytest.skip(reason)
    with Cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started
