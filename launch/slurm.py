"""SLURM: the batch script of a job, and the commands that submit, find, show and cancel it.

`render` is pure; the committed `slurm/train.sbatch` is its output for the default job.
"""

import getpass
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from indextts_job.errors import ConfigError, UnavailableError
from launch.job import Job, error_line

TEMPLATE = Path(__file__).with_name("train.sbatch.template")
ANSWER_S = 120.0
"""How long a SLURM command may take. The commands themselves retry a busy controller for less than this."""
# The `#SBATCH` lines are read by sbatch and not by a shell, so values are restricted instead of quoted.
_WORD = re.compile(r"\w[\w.+:@,=-]*")
_DURATION = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|INFINITE|UNLIMITED", re.ASCII)
TAIL_BYTES = 64 * 1024
"""How much of the end of a log is searched for its last error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """Options that only SLURM has."""

    account: str = ""
    partition: str = ""
    slices: int = 20
    """Largest number of time slices in the chain."""
    time_limit: str = "24:00:00"
    """Time limit of one slice, in SLURM's notation."""
    log_folder: str = ""
    environment: str = ".venv"
    """Virtual environment, used when the job has no image."""


def render(job: Job, options: SlurmOptions) -> str:
    """The batch script.

    Raises:
        ConfigError: A value cannot stand in an `#SBATCH` line.
    """
    _check(job, options)
    folder = f"{options.log_folder.rstrip('/')}/" if options.log_folder else ""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=job.name,
        account=_directive("account", options.account),
        partition=_directive("partition", options.partition),
        command=job.command,
        # Slices of a training come one after the other; the workers of a preparation run at the same time.
        array=f"1-{options.slices}%1" if job.command == "train" else f"0-{job.workers - 1}",
        time=options.time_limit,
        nodes=job.nodes,
        gpus=f"#SBATCH --gres=gpu:{job.gpus}" if job.gpus else "##SBATCH --gres=gpu:…",
        cpus=job.cpus,
        memory=job.memory_gib,
        # %x is the job's name and %A the number of the array, so that all slices append to one log; %a is the worker.
        log=_quoted(f"{folder}%x-%A.log" if job.command == "train" else f"{folder}%x-%A_%a.log"),
        grace=job.grace_seconds,
        arguments=" ".join(map(shlex.quote, job.arguments)),
        image=shlex.quote(job.image) if job.image else "",
        environment=shlex.quote(options.environment),
        max_failures=job.max_failures,
    )


def _quoted(log: str) -> str:
    return f'"{log}"' if " " in log else log


def _check(job: Job, options: SlurmOptions) -> None:
    for name, value in (("name", job.name), ("account", options.account), ("partition", options.partition)):
        _check_word(name, value)
    if not _DURATION.fullmatch(options.time_limit):
        raise ConfigError(
            f"time limit {options.time_limit!r}: expected minutes, hours:minutes:seconds or days-hours, as SLURM "
            "takes them, for example 24:00:00 or 2-12."
        )
    if not options.log_folder.isprintable() or any(mark in options.log_folder for mark in "\"'\\"):
        raise ConfigError(f"log folder {options.log_folder!r}: expected a path without quotes, \\ and line breaks.")
    if options.slices < 1:
        raise ConfigError(f"slices {options.slices}: expected at least 1.")


def _check_word(name: str, value: str) -> None:
    if value and not _WORD.fullmatch(value):
        raise ConfigError(
            f"{name} {value!r}: expected letters, digits and . _ + : @ , = - without spaces, beginning with a "
            "letter or digit."
        )


def _directive(name: str, value: str) -> str:
    """An `#SBATCH` line; without a value it is commented out, for a user who edits the script."""
    return f"#SBATCH --{name}={value}" if value else f"##SBATCH --{name}=…"


@dataclass(frozen=True, slots=True)
class Task:
    """One job of the queue, from the fields that `scontrol show job` prints."""

    fields: dict[str, str]

    @property
    def name(self) -> str:
        """The number that SLURM's commands take: 17, or 17_3 for a task of an array."""
        array = self.fields.get("ArrayJobId")
        return f"{array}_{self.fields['ArrayTaskId']}" if array else self.fields["JobId"]

    @property
    def log(self) -> Path:
        """The file that its output goes to."""
        return Path(self.fields.get("StdOut", ""))

    def row(self) -> tuple[str, ...]:
        """The values of `TASK_COLUMNS`."""
        start = self.fields.get("StartTime", "")
        # Before a start is planned the field is "Unknown". The time is the cluster's local time, without a zone.
        shown = start.replace("T", " ")[5:16] if re.match(r"\d{4}-\d\d-\d\dT", start) else ""
        return (self.name, *(self.fields.get(key, "") for key in ("JobState", "Restarts", "RunTime")), shown)

    def notes(self) -> tuple[str, ...]:
        """The node that it runs on, and the reason why it is waiting."""
        nodes, reason = self.fields.get("NodeList", ""), self.fields.get("Reason", "None")
        return (f"node {nodes}" if nodes not in ("", "(null)") else "", "" if reason == "None" else reason)


TASK_COLUMNS = ("job", "state", "restarts", "time", "start")


class SlurmCluster:
    """The cluster of this login node, used through SLURM's commands."""

    def __init__(self, run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run) -> None:
        self._run = run

    def submit(self, script: str, options: SlurmOptions) -> str:
        """Queue a script; returns the job's number."""
        if options.log_folder:
            # SLURM fails a job without any message when the folder of its log does not exist.
            try:
                Path(options.log_folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                message = f"log folder {options.log_folder}: {error.strerror}. Give another --log-folder."
                raise ConfigError(message) from error
        # With --parsable sbatch prints NUMBER, or NUMBER;CLUSTER where several clusters are connected.
        return self._call(["sbatch", "--parsable"], script).strip().partition(";")[0]

    def find(self, which: str) -> str:
        """The number of a job.

        Args:
            which: A number, which is returned as it is, or a name: the newest job of this user with that name.

        Raises:
            ConfigError: This user has no job of that name.
        """
        if re.fullmatch(r"\d+(_\d+)?", which):
            return which
        user = getpass.getuser()
        everyone = self._tasks(["scontrol", "--oneliner", "show", "job"])
        mine = [task for task in everyone if _is_job_of(task, which, user)]
        if not mine:
            raise ConfigError(f"no job of {user} named {which} in the queue or just finished. Give its number.")
        # Job numbers grow, so the largest is the newest.
        return max((task.fields.get("ArrayJobId", task.fields["JobId"]) for task in mine), key=int)

    def tasks(self, number: str) -> list[Task]:
        """The tasks of a job: running, waiting, and those that ended a short time ago."""
        return list(self._tasks(["scontrol", "--oneliner", "show", "job", number]))

    def cancel(self, number: str) -> None:
        """Cancel a job and all its slices; the trainer commits a checkpoint first."""
        self._call(["scancel", number])

    def _tasks(self, command: Sequence[str]) -> Iterator[Task]:
        for line in self._call(command).splitlines():
            # Values may contain spaces, keys do not: a value ends where the next ` Key=` begins.
            fields = dict(re.findall(r"(\w+)=(.*?)(?=\s+[A-Z]\w*=|$)", line.strip()))
            if "JobId" in fields:  # an empty queue prints a sentence instead
                yield Task(fields)

    def _call(self, command: Sequence[str], stdin: str = "") -> str:
        try:
            done = self._run(
                command, input=stdin, capture_output=True, text=True, errors="replace", check=False, timeout=ANSWER_S
            )
        except FileNotFoundError:
            raise ConfigError(f"{command[0]} not found. Run this where SLURM's commands are: a login node.") from None
        except subprocess.TimeoutExpired:
            raise UnavailableError(
                f"{command[0]}: no answer in {ANSWER_S:.0f} s. Is the controller there? `scontrol ping` tells."
            ) from None
        if done.returncode != 0:
            what = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
            raise UnavailableError(f"{command[0]}: {what}")
        return done.stdout


def _is_job_of(task: Task, name: str, user: str) -> bool:
    # The field is NAME(UID); the parenthesis keeps `ann` from matching `anna`.
    return task.fields.get("JobName") == name and task.fields.get("UserId", "").startswith(f"{user}(")


def last_error(log: Path) -> str:
    """The last line of a log that begins with `error:`; empty if there is none or the log cannot be read."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            return error_line(file.read().decode(errors="replace"))
    except OSError:
        return ""
