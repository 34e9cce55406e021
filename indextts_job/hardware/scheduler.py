"""Who started this process, from its environment: written into the record of every attempt."""

from collections.abc import Mapping

LAUNCHER_VARIABLE = "INDEXTTS_LAUNCHER"
"""Set by `indextts-launch local` to a name of its own."""
RENDEZVOUS_VARIABLE = "INDEXTTS_RENDEZVOUS"
"""Where ranks meet, set by the process that starts those of a node; without it torchrun's variables are used."""


def read_scheduler(environment: Mapping[str, str]) -> dict[str, str]:
    """What is known about the job: `kind`, `chain` (the same for every start of one submitted job) and numbers.

    Args:
        environment: Of the process.

    Returns:
        Empty when nobody but a person started it.
    """
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
            "node": environment.get("INDEXTTS_NODE", ""),
            "pod": environment.get("INDEXTTS_POD", ""),
        }
    if LAUNCHER_VARIABLE in environment:
        return {"kind": "local", "chain": environment[LAUNCHER_VARIABLE]}
    return {}
