"""Launchers of a preparation: all its workers run at a time, and each is restarted by itself."""

import os
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from indextts_job.errors import ConfigError
from launch.cli import main
from launch.job import Job
from launch.kubernetes.manifest import KubernetesOptions, render
from launch.kubernetes.remote_run import remote_config
from launch.local_workers import code_of, environment_of
from launch.slurm import SlurmOptions
from launch.slurm import render as render_slurm

VERSION = "1.29"
WORKERS = Job(command="prepare", workers=4, arguments=("prepare.yaml",), name="am")
RUNNING = "JobId=7 JobState=RUNNING Reason=None PreemptTime=None"


def test_workers_and_nodes_belong_to_one_command_each() -> None:
    with pytest.raises(ConfigError, match="--workers 2: a training has --nodes and --gpus"):
        Job(workers=2)
    with pytest.raises(ConfigError, match="--nodes 2: the workers of a preparation are independent"):
        Job(command="prepare", nodes=2)
    with pytest.raises(ConfigError, match="--workers 0: expected at least 1"):
        Job(command="prepare", workers=0)


def test_an_array_of_workers_runs_at_the_same_time(tmp_path: Path) -> None:
    script = render_slurm(WORKERS, SlurmOptions())
    assert "\n#SBATCH --array=0-3\n" in script
    assert "\n#SBATCH --output=%x-%A_%a.log\n" in script
    assert "\nsubcommand=prepare\n" in script
    assert "%1" not in script.partition("set -euo")[0].partition("#SBATCH")[2]


@pytest.mark.parametrize(
    ("code", "asked"),
    [(0, ""), (65, ""), (78, ""), (75, "requeue 6_2\n"), (69, "requeue 6_2\n"), (137, "requeue 6_2\n")],
)
def test_a_worker_is_queued_again_by_itself_and_ends_no_other(tmp_path: Path, code: int, asked: str) -> None:
    script = tmp_path / "prepare.sbatch"
    script.write_text(render_slurm(WORKERS, SlurmOptions()), encoding="utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    shown = (
        f'case "$*" in *"show job"*) echo "{RUNNING}" ;; *hostnames*) echo n1 ;; requeue*) echo "$*" >>asked ;; esac'
    )
    bodies = {"srun": f'echo "$@" >arguments; exit {code}', "scontrol": shown, "scancel": 'echo "scancel $*" >>asked'}
    for name, body in bodies.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    environment |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "2", "SLURM_JOB_NAME": "am"}
    environment |= {"SLURM_JOB_PARTITION": "spot", "SLURM_NNODES": "1"}
    done = subprocess.run(
        ["bash", str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (code, "")
    found = tmp_path / "asked"
    assert (found.read_text(encoding="utf-8") if found.exists() else "") == asked
    assert (tmp_path / "arguments").read_text(encoding="utf-8").endswith(" prepare prepare.yaml\n")
    failures = tmp_path / ".am-6_2.failures"
    assert failures.exists() == (code in (69, 137))


@pytest.mark.parametrize("workers", [1, 4])
def test_workers_are_an_indexed_job(workers: int) -> None:
    text = render(Job(command="prepare", workers=workers, name="am"), KubernetesOptions(config="output: s3://b/am\n"))
    found = {document["kind"]: document for document in yaml.safe_load_all(text)}
    for document in found.values():
        kubernetes_validate.validate(document, VERSION, strict=True)
    assert "Service" not in found  # workers do not meet
    spec = found["Job"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", workers, workers)
    assert spec["backoffLimit"] == workers * KubernetesOptions().backoff_limit
    (container,) = spec["template"]["spec"]["containers"]
    assert container["args"] == ["prepare", "/etc/indextts-job/run.yaml"]
    assert "INDEXTTS_NODES" not in {entry["name"] for entry in container["env"]}


def settings(**changes: object) -> dict[str, object]:
    document: dict[str, object] = {
        "output": "s3://b/data/am",
        "manifests": ["s3://b/raw/am.jsonl::am"],
        "model": {key: f"s3://b/base/{key}" for key in ("config", "base_checkpoint", "tokenizer")},
        "encoders": {key: f"s3://b/encoders/{key}" for key in ("w2v_bert", "statistics", "codec")},
    }
    return {**document, **changes}


def test_a_preparation_is_checked_before_it_is_queued(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "prepare.yaml"
    path.write_text(yaml.safe_dump(settings()), encoding="utf-8")
    text, place = remote_config(Job(command="prepare", arguments=(str(path),)))
    assert (text, place) == (path.read_text(encoding="utf-8"), "s3://b/data/am")
    for arguments, message in (
        ((str(path), "pairs.per_targt=3"), "per_target"),
        ((str(path), "output=data/am"), r"disk of a pod.*\n  output: data/am\n"),
        ((str(path), "audio.folder=/audio"), r"\n  audio.folder: /audio\n"),
    ):
        with pytest.raises(ConfigError, match=message):
            remote_config(Job(command="prepare", arguments=arguments))
    given = ["--command", "prepare", "--workers", "4", "--image", "i", "--dry-run", "--", str(path)]
    assert main(["kubernetes", "submit", *given]) == 0
    assert "name: am\n" in capsys.readouterr().out


def test_workers_on_one_machine_have_names_and_gpus_of_their_own() -> None:
    assert environment_of(3, 2) == {"INDEXTTS_WORKER": "3", "CUDA_VISIBLE_DEVICES": "1"}
    assert environment_of(3, 0) == {"INDEXTTS_WORKER": "3"}


@pytest.mark.parametrize(
    ("codes", "together"), [([0, 0], 0), ([75, 0], 75), ([75, 69], 69), ([0, 65, 75], 65), ([0, 75], 75)]
)
def test_the_exit_code_of_all_workers_is_that_of_what_failed(codes: list[int], together: int) -> None:
    assert code_of(codes) == together
