"""Who started this process, from its environment: written into the record of every attempt.

The launchers tell the trainer what they know in variables whose names begin with INDEXTTS. Each of them has one
meaning.
"""

from collections.abc import Mapping

from indextts_job.errors import ConfigError

NODE_NAME_VARIABLE = "INDEXTTS_NODE_NAME"
"""Name of the machine that a pod runs on: for people, in the record of the attempt."""
NODE_INDEX_VARIABLE = "INDEXTTS_NODE_INDEX"
"""Which of several nodes this is, from 0: where neither SLURM nor an Indexed Job says it."""
NODES_VARIABLE = "INDEXTTS_NODES"
"""Number of nodes that train together."""
MEETING_VARIABLE = "INDEXTTS_MEETING"
"""`host:port` on the first of several nodes."""
LAUNCHER_VARIABLE = "INDEXTTS_LAUNCHER"
"""Set by `indextts-launch local` to a name of its own."""
PROGRESS_VARIABLE = "INDEXTTS_PROGRESS_FILE"
"""Local file where rank 0 keeps the step of its newest checkpoint for the launcher that started it."""
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
            "node": environment.get(NODE_NAME_VARIABLE, ""),
            "pod": environment.get("INDEXTTS_POD", ""),
        }
    if LAUNCHER_VARIABLE in environment:
        return {"kind": "local", "chain": environment[LAUNCHER_VARIABLE]}
    return {}


def whole_number(environment: Mapping[str, str], name: str, default: int, least: int = 0) -> int:
    """A variable that holds a whole number.

    Args:
        environment: Of the process.
        name: Of the variable.
        default: Its value where it is not set.
        least: Smallest value that makes sense.

    Raises:
        ConfigError: It holds something else.
    """
    text = environment.get(name, str(default)).strip()
    # Not `int`: it takes signs, underscores and digits of other scripts, which no launcher writes.
    if not (text.isascii() and text.isdigit() and len(text) <= 9) or int(text) < least:
        raise ConfigError(
            f"{name} in the environment is {text!r}, expected a whole number of at least {least}. The launcher sets "
            "it; where you set it yourself, correct it or unset it."
        )
    return int(text)
