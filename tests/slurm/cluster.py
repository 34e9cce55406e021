"""A real SLURM on loopback: munged, slurmctld and slurmd of the Debian packages, as root, stopped by their pids.

No systemd, no cgroups, no database. Two partitions share one node: `spot` is preempted by requeue after a grace
period, `ondemand` is what preempts it. `pair` is that node and a second one, both played by this machine.
"""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.parts import PATH
from tests.support.servers import free_ports
from tests.support.waiting import wait_until

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
KILL_WAIT_S = 5
NODE_TIMEOUT_S = 5


@dataclass
class Cluster:
    """Two nodes, three partitions."""

    folder: Path
    grace_s: int = 20
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """For SLURM's commands and the jobs."""
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        """Start the daemons and wait until the node is idle."""
        for name in ("state", "spool", "log", "run"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o755)  # every user's commands read the configuration
        (self.folder / "run").chmod(0o755)
        (self.folder / "slurm.conf").write_text(self._configuration())
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        run = self.folder / "run"
        munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={run}/munge.socket"]
        munge += [f"--pid-file={run}/munged.pid", f"--log-file={self.folder}/log/munged.log"]
        self._daemon("munged", [*munge, f"--seed-file={run}/seed", "--num-threads=2"])
        wait_until((run / "munge.socket").exists, "munged listens")
        self._daemon("slurmctld", ["slurmctld", "-D", "-f", str(self.folder / "slurm.conf")])
        self.start_node()
        self.start_node(_second())

    def start_node(self, name: str = "") -> None:
        """Start slurmd; after `lose_node`, as a machine that comes back."""
        name = name or _host()
        (self.folder / "spool" / name).mkdir(exist_ok=True)
        daemon = "slurmd" if name == _host() else name
        self._daemon(daemon, ["slurmd", "-D", "-N", name, "-f", str(self.folder / "slurm.conf")])
        wait_until(lambda: self._is_ready(name), f"node {name} is ready")

    def _is_ready(self, name: str) -> bool:
        state = self.call("sinfo", "-h", "-n", name, "-o", "%T", check=False).split("\n")[0].strip()
        if state.startswith("down"):
            self.call("scontrol", "update", f"NodeName={name}", "State=RESUME", check=False)
        return state in ("idle", "mixed", "allocated", "completing")

    def lose_node(self) -> None:
        """Lose slurmd; jobs and their step daemons live on, as when only the network is gone.

        The controller finds out by a timeout of half a minute; it is told, as a health check would.
        """
        self._kill("slurmd", 9)
        self.call("scontrol", "update", f"NodeName={_host()}", "State=DOWN", "Reason=lost")

    def stop(self) -> None:
        """Cancel everything, then stop the daemons."""
        self.call("scancel", "--full", "--signal=KILL", "--user=root", check=False)
        for name in ("slurmd", _second(), "slurmctld", "munged"):
            self._kill(name, 15)

    def call(self, *command: str, check: bool = True, cwd: Path | None = None, script: str | None = None) -> str:
        """Output of one of SLURM's commands."""
        done = subprocess.run(
            command, env=self.environment, cwd=cwd, input=script, capture_output=True, text=True, check=False
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """JobState of one job or array task; empty when it is not known."""
        shown = self.call("scontrol", "--oneliner", "show", "job", job, check=False)
        return shown.partition("JobState=")[2].partition(" ")[0]

    def occupy(self, folder: Path) -> str:
        """Take the node from `spot` with a job of higher priority; it holds it until it is cancelled."""
        script = "#!/bin/bash\nsleep 600\n"
        output = f"--output={folder}/ondemand.log"
        options = ("--parsable", "--partition=ondemand", "--exclusive", output)
        return self.call("sbatch", *options, script=script).strip()

    def release_held(self, job: str) -> None:
        """Lift the pause before a requeued job may start: SLURM waits until the old credential has expired."""
        self.call("scontrol", "update", f"JobId={job}", "StartTime=now", check=False)

    def _daemon(self, name: str, command: list[str]) -> None:
        environment = {**self.environment, "PATH": PATH}
        with (self.folder / "log" / f"{name}.out").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        self._processes()[name] = process
        self.pids[name] = process.pid

    def _processes(self) -> "dict[str, subprocess.Popen[bytes]]":
        return self.__dict__.setdefault("_started", {})  # type: ignore[no-any-return]

    def _kill(self, name: str, number: int) -> None:
        process = self._processes().pop(name, None)
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _configuration(self) -> str:
        host, second, (ctld, slurmd, other) = _host(), _second(), free_ports(3)
        run, log = self.folder / "run", self.folder / "log"
        lines = f"""
            ClusterName=test
            SlurmctldHost={host}(127.0.0.1)
            SlurmctldPort={ctld}
            SlurmUser=root
            SlurmdUser=root
            AuthType=auth/munge
            AuthInfo=socket={run}/munge.socket,cred_expire=5
            StateSaveLocation={self.folder}/state
            SlurmdSpoolDir={self.folder}/spool/%n
            SlurmctldPidFile={run}/slurmctld.pid
            SlurmdPidFile={run}/slurmd-%n.pid
            SlurmctldLogFile={log}/slurmctld.log
            SlurmdLogFile={log}/slurmd-%n.log
            ProctrackType=proctrack/linuxproc
            TaskPlugin=task/none
            JobAcctGatherType=jobacct_gather/none
            PropagateResourceLimits=NONE
            SlurmdParameters=config_overrides
            AccountingStorageType=accounting_storage/none
            MinJobAge=3600
            MpiDefault=none
            SchedulerType=sched/backfill
            SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
            SelectType=select/cons_tres
            SelectTypeParameters=CR_Core
            PreemptType=preempt/partition_prio
            PreemptMode=REQUEUE
            JobRequeue=1
            KillWait={KILL_WAIT_S}
            InactiveLimit=0
            ReturnToService=2
            SlurmctldTimeout=10
            SlurmdTimeout={NODE_TIMEOUT_S}
            NodeName={host} NodeHostname={host} NodeAddr=127.0.0.1 Port={slurmd} CPUs=2 RealMemory=4000
            NodeName={second} NodeHostname={host} NodeAddr=127.0.0.1 Port={other} CPUs=2 RealMemory=4000
            PartitionName=spot Nodes={host} Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={self.grace_s}
            PartitionName=ondemand Nodes={host} PriorityTier=100 PreemptMode=OFF
            PartitionName=pair Nodes={host},{second} PriorityTier=1 PreemptMode=REQUEUE GraceTime={self.grace_s}
        """
        return "\n".join(line.strip() for line in lines.strip().splitlines()) + "\n"


def _second() -> str:
    return f"{_host()}-2"


def _host() -> str:
    return socket.gethostname().partition(".")[0]


@contextmanager
def running_cluster(folder: Path, grace_s: int) -> Iterator[Cluster]:
    """A cluster for some tests."""
    cluster = Cluster(folder, grace_s)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
