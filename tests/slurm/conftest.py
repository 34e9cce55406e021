"""One cluster for all tests of this folder, and a working directory with an awkward name."""

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3.conftest import connect, reach, s3_run, seaweed  # noqa: F401  # fixtures
from tests.slurm.cluster import PROGRAMS, Cluster, running_cluster
from tests.support.parts import demand_as_root

GRACE_S = 20


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    demand_as_root(PROGRAMS, "slurm-wlm munge")
    # Sockets allow short paths only, so not below pytest's folder.
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, running_cluster(Path(name), GRACE_S) as running:
        yield running


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Where a user calls sbatch: a path with spaces, the virtual environment in it."""
    folder = tmp_path / "my experiments, 2nd"
    folder.mkdir()
    (folder / ".venv").symlink_to(sys.prefix)
    return folder
