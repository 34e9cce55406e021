"""The job that started this process, from environment variables; it is recorded with every attempt.

The launchers pass information to the trainer in variables whose names begin with INDEXTTS. Each has one meaning.
"""

from collections.abc import Mapping

from indextts_job.errors import ConfigError

NODE_NAME_VARIABLE = "INDEXTTS_NODE_NAME"
"""Name of the machine that a pod runs on, for the record of the attempt."""
NODE_INDEX_VARIABLE = "INDEXTTS_NODE_INDEX"
"""Index of this node among several, from 0; needed where neither SLURM nor an Indexed Job gives it."""
NODES_VARIABLE = "INDEXTTS_NODES"
"""Number of nodes that train together."""
MEETING_VARIABLE = "INDEXTTS_MEETING"
"""`host:port` of the rendezvous, on the first of several nodes."""
LAUNCHER_VARIABLE = "INDEXTTS_LAUNCHER"
"""Name of the `indextts-launch local` that started the trainer."""
PROGRESS_VARIABLE = "INDEXTTS_PROGRESS_FILE"
"""Local file in which rank 0 keeps the step of its newest checkpoint, for the launcher that started it."""
GPUS_VARIABLE = "INDEXTTS_GPUS"
"""GPUs that the job has asked its scheduler for on each node; SLURM gives their number itself."""
RENDEZVOUS_VARIABLE = "INDEXTTS_RENDEZVOUS"
"""Rendezvous of the ranks, set by the process that starts the ranks of a node; without it torchrun's variables are
used."""


def read_scheduler(environment: Mapping[str, str]) -> dict[str, str]:
    """The job that this process belongs to.

    Args:
        environment: Environment variables of the process.

    Returns:
        `kind`, `chain` (the same for every start of one submitted job), and what the scheduler gives beyond that; empty
        when a person started the process.
    """
    # SLURM comes first: the local launcher and the container may also run inside one of its jobs.
    if "SLURM_JOB_ID" in environment:
        job = environment["SLURM_JOB_ID"]
        return {
            "kind": "slurm",
            "chain": environment.get("SLURM_ARRAY_JOB_ID", job),
            "job": job,
            "task": environment.get("SLURM_ARRAY_TASK_ID", ""),
            "restarts": environment.get("SLURM_RESTART_COUNT", "0"),
            "node": environment.get("SLURMD_NODENAME", ""),
            "partition": environment.get("SLURM_JOB_PARTITION", ""),
        }
    if "INDEXTTS_JOB_UID" in environment:  # set by the manifest that the launcher renders
        return {
            "kind": "kubernetes",
            "chain": f"{environment.get('INDEXTTS_JOB', '')}/{environment['INDEXTTS_JOB_UID']}",
            "node": environment.get(NODE_NAME_VARIABLE, ""),
            "pod": environment.get("INDEXTTS_POD", ""),
        }
    if LAUNCHER_VARIABLE in environment:
        return {"kind": "local", "chain": environment[LAUNCHER_VARIABLE]}
    return {}


def requested_gpus(environment: Mapping[str, str]) -> bool:
    """Whether the scheduler was asked for GPUs on this node, as far as it tells the process."""
    # SLURM_JOB_GPUS is a list of indices, so that "0" means one GPU; the others are numbers.
    counted = any(environment.get(name, "0").strip("0 ") for name in (GPUS_VARIABLE, "SLURM_GPUS_ON_NODE"))
    return counted or bool(environment.get("SLURM_JOB_GPUS"))


def whole_number(environment: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """The whole number in an environment variable.

    Args:
        environment: Environment variables of the process.
        name: Name of the variable.
        default: Value if the variable is not set.
        least: Smallest valid value.

    Raises:
        ConfigError: The variable does not hold such a number.
    """
    text = environment.get(name, str(default)).strip()
    # `int` alone also accepts signs, underscores and digits of other scripts, which no launcher writes.
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) < least:
        raise ConfigError(
            f"{name} in the environment is {text!r}, expected a whole number of at least {least}. The launcher sets "
            "it; where you set it yourself, correct it or unset it."
        )
    return int(text)
