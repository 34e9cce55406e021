"""Determines nodes and processes of a run, from the environment and the devices of this node. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from indextts_job.errors import ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.hardware.visible import visible_gpus
from indextts_job.scheduler import MEETING_VARIABLE, NODE_INDEX_VARIABLE, NODES_VARIABLE, whole_number


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """The place of this node among several. All of them have the same number of processes."""

    count: int = 1
    index: int = 0
    meeting: str = ""
    """`host:port` on the first node, where the ranks meet; unused for one node."""


def read_nodes(environment: Mapping[str, str]) -> Nodes:
    """The nodes of this job, from the variables that the launchers set.

    Raises:
        ConfigError: There are several nodes and no place to meet, or a variable holds something unexpected.
    """
    # Set by our launchers. One node needs none of the further variables.
    count = whole_number(environment, NODES_VARIABLE, 1, least=1)
    if count == 1:
        return Nodes()
    meeting = _meeting(environment, count)
    return Nodes(count=count, index=_index(environment, count), meeting=meeting)


def _meeting(environment: Mapping[str, str], count: int) -> str:
    meeting = environment.get(MEETING_VARIABLE, "")
    host, _, port = meeting.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()):
        raise ConfigError(
            f"{NODES_VARIABLE} is {count}, but {MEETING_VARIABLE} is {meeting!r}, expected host:port on the first node."
        )
    return meeting


def _index(environment: Mapping[str, str], count: int) -> int:
    """Index of this node: from a launcher, else from an Indexed Job of Kubernetes, else from SLURM."""
    sources = (NODE_INDEX_VARIABLE, "JOB_COMPLETION_INDEX", "SLURM_NODEID")
    source = next((name for name in sources if name in environment), None)
    if source is None:  # two nodes with index 0 would wait for each other for ever
        raise ConfigError(f"{NODES_VARIABLE} is {count}, but none of {', '.join(sources)} says which of them this is.")
    index = whole_number(environment, source, 0)
    if index >= count:
        raise ConfigError(f"{source} is {index}, but {NODES_VARIABLE} is {count}: expected 0 … {count - 1}.")
    return index


def wanted_processes(config: HardwareConfig, environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """Number of processes to start here; 1 when another launcher has started several already.

    Args:
        config: Settings of the user.
        environment: Variables of this process.
        devices: Folder of the device files.
    """
    # torchrun sets RANK: then this process is one of several already.
    if "RANK" in environment:
        return 1
    if config.processes or config.device == "cpu":
        return max(1, config.processes)
    return max(1, visible_gpus(environment, devices))
