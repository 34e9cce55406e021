"""Workers of a preparation as an array on a real cluster: one is preempted, and there is one output."""

from pathlib import Path

import yaml

from launch.job import Job
from launch.slurm import SlurmOptions, render
from tests.prepare.conftest import Run, run, voices  # noqa: F401  # fixtures
from tests.prepare.outcomes import indexes, records
from tests.slurm.cluster import Cluster
from tests.slurm.test_chain import WITHOUT_GPU, over, tasks
from tests.support.voices import Voices
from tests.support.waiting import wait_until

WORKERS = 4


def test_an_array_of_workers_of_which_one_is_preempted_makes_one_output(
    cluster: Cluster,
    voices: Voices,  # noqa: F811
    run: Run,  # noqa: F811
    desk: Path,
    tmp_path: Path,
) -> None:
    settings = voices.settings(tmp_path / "undisturbed", unit=1)
    assert run(settings) == 0
    settings["output"] = str(tmp_path / "out")
    (desk / "prepare.yaml").write_text(yaml.safe_dump(settings, allow_unicode=True), encoding="utf-8")
    job = Job(command="prepare", workers=WORKERS, arguments=("prepare.yaml",), name="am", gpus=0, memory_gib=1)
    script = desk / "prepare.sbatch"
    script.write_text(render(job, SlurmOptions(partition="spot")), encoding="utf-8")
    # One thread as in this process: the last bits of arrays depend on their number.
    options = (*WITHOUT_GPU, "--mem=300", "--export=ALL,OMP_NUM_THREADS=1")
    array = cluster.call("sbatch", "--parsable", *options, str(script), cwd=desk).strip()
    victim = f"{array}_2"
    wait_until((tmp_path / "out/preparation.json").exists, "a worker has begun")
    wait_until(lambda: tasks(cluster, array).get(victim) == "RUNNING", "the victim runs")
    cluster.call("scancel", "--signal=TERM", victim)
    wait_until(lambda: "Restarts=1" in cluster.call("scontrol", "--oneliner", "show", "job", victim, check=False)
               or over(cluster, array), "it is queued again, or has ended before the signal")  # fmt: skip
    cluster.release_held(victim)
    wait_until(lambda: over(cluster, array), "all have ended")
    assert set(tasks(cluster, array).values()) == {"COMPLETED"}
    assert len(list(desk.glob(f"am-{array}_*.log"))) == WORKERS
    assert records(tmp_path / "out") == records(tmp_path / "undisturbed")
    assert indexes(tmp_path / "out") == indexes(tmp_path / "undisturbed")
