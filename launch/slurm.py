"""SLURM: the batch script of a job, and what people do with it on a cluster.

`render` is pure; the committed `slurm/train.sbatch` is what it gives for the default job.
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
from launch.job import Job

TEMPLATE = Path(__file__).with_name("train.sbatch.template")
ANSWER_S = 120.0
"""SLURM's commands wait for a busy controller themselves, for less than this."""
ERROR_LINE = "error:"
_WORD = re.compile(r"\w[\w.+:@,=-]*")
_DURATION = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|INFINITE|UNLIMITED", re.ASCII)
TAIL_BYTES = 64 * 1024
"""Of a log, when its last error is looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmOptions:
    """What only SLURM needs to know."""

    account: str = ""
    partition: str = ""
    slices: int = 20
    """Time slices of the chain, at most."""
    time_limit: str = "24:00:00"
    """Of one slice."""
    log_folder: str = ""
    environment: str = ".venv"
    """Virtual environment, used when the job names no image."""


def render(job: Job, options: SlurmOptions) -> str:
    """The batch script.

    Raises:
        ConfigError: Something cannot stand in an `#SBATCH` line.
    """
    for name, value in (("name", job.name), ("account", options.account), ("partition", options.partition)):
        if value and not _WORD.fullmatch(value):
            raise ConfigError(
                f"{name} {value!r}: expected letters, digits and . _ + : @ , = - without spaces, beginning with a "
                "letter or digit."
            )
    if not _DURATION.fullmatch(options.time_limit):
        raise ConfigError(
            f"time limit {options.time_limit!r}: expected minutes, hours:minutes:seconds or days-hours, as SLURM "
            "takes them, for example 24:00:00 or 2-12."
        )
    if not options.log_folder.isprintable() or any(mark in options.log_folder for mark in "\"'\\"):
        raise ConfigError(f"log folder {options.log_folder!r}: expected a path without quotes, \\ and line breaks.")
    if options.slices < 1:
        raise ConfigError(f"slices {options.slices}: expected at least 1.")
    folder = f"{options.log_folder.rstrip('/')}/" if options.log_folder else ""
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=job.name,
        account=_directive("account", options.account),
        partition=_directive("partition", options.partition),
        slices=options.slices,
        time=options.time_limit,
        nodes=job.nodes,
        gpus=f"#SBATCH --gres=gpu:{job.gpus}" if job.gpus else "##SBATCH --gres=gpu:…",
        cpus=job.cpus,
        memory=job.memory_gib,
        log=f'"{folder}%x-%A.log"' if " " in folder else f"{folder}%x-%A.log",
        grace=job.grace_seconds,
        arguments=" ".join(map(shlex.quote, job.arguments)),
        image=shlex.quote(job.image) if job.image else "",
        environment=shlex.quote(options.environment),
        max_failures=job.max_failures,
    )


def _directive(name: str, value: str) -> str:
    """An `#SBATCH` line; one that waits for its value is commented out."""
    return f"#SBATCH --{name}={value}" if value else f"##SBATCH --{name}=…"


@dataclass(frozen=True, slots=True)
class Task:
    """One job of the queue, as `scontrol` tells it."""

    fields: dict[str, str]

    @property
    def name(self) -> str:
        """Number as people give it: 17, or 17_3 of an array."""
        array = self.fields.get("ArrayJobId")
        return f"{array}_{self.fields['ArrayTaskId']}" if array else self.fields["JobId"]

    @property
    def log(self) -> Path:
        """File of its output."""
        return Path(self.fields.get("StdOut", ""))

    def row(self) -> tuple[str, ...]:
        """For a table: what is short."""
        start = self.fields.get("StartTime", "")
        # SLURM tells the time of the cluster, without a zone.
        shown = start.replace("T", " ")[5:16] if re.match(r"\d{4}-\d\d-\d\dT", start) else ""
        return (self.name, *(self.fields.get(key, "") for key in ("JobState", "Restarts", "RunTime")), shown)

    def notes(self) -> tuple[str, ...]:
        """Where it runs, and why it does not."""
        nodes, reason = self.fields.get("NodeList", ""), self.fields.get("Reason", "None")
        return (f"node {nodes}" if nodes not in ("", "(null)") else "", "" if reason == "None" else reason)


TASK_COLUMNS = ("job", "state", "restarts", "time", "start")


class SlurmCluster:
    """The cluster whose login node this is, through its own commands."""

    def __init__(self, run: Callable[..., "subprocess.CompletedProcess[str]"] = subprocess.run) -> None:
        self._run = run

    def submit(self, script: str, options: SlurmOptions) -> str:
        """Queue a script; returns the job's number."""
        if options.log_folder:
            # SLURM fails a job without a word when the folder of its log is not there.
            try:
                Path(options.log_folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                message = f"log folder {options.log_folder}: {error.strerror}. Give another --log-folder."
                raise ConfigError(message) from error
        return self._call(["sbatch", "--parsable"], script).strip().partition(";")[0]

    def find(self, which: str) -> str:
        """The number of a job: as given, or the newest of this user with that name.

        Raises:
            ConfigError: There is none.
        """
        if re.fullmatch(r"\d+(_\d+)?", which):
            return which
        user = getpass.getuser()
        mine = [
            task
            for task in self._tasks(["scontrol", "--oneliner", "show", "job"])
            if task.fields.get("JobName") == which and task.fields.get("UserId", "").startswith(f"{user}(")
        ]
        if not mine:
            raise ConfigError(f"no job of {user} named {which} in the queue or just finished. Give its number.")
        return max((task.fields.get("ArrayJobId", task.fields["JobId"]) for task in mine), key=int)

    def tasks(self, number: str) -> list[Task]:
        """The jobs of a number, running and waiting and just ended."""
        return list(self._tasks(["scontrol", "--oneliner", "show", "job", number]))

    def cancel(self, number: str) -> None:
        """End a job for good; the trainer commits a checkpoint first."""
        self._call(["scancel", number])

    def _tasks(self, command: Sequence[str]) -> Iterator[Task]:
        for line in self._call(command).splitlines():
            # Values may hold spaces, keys do not: a value ends where the next ` Key=` begins.
            fields = dict(re.findall(r"(\w+)=(.*?)(?=\s+[A-Z]\w*=|$)", line.strip()))
            if "JobId" in fields:
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


def last_error(log: Path) -> str:
    """The last error that a log shows; empty if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line.startswith(ERROR_LINE)), "")
