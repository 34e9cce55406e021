"""The JobSet of several nodes: the same pods as those of the Job, that find each other and end for the same reasons."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.cli import main
from tests.kubernetes.test_manifests import config_file


def rendered(tmp_path: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict[str, Any]]:
    path = config_file(tmp_path)
    assert main(["kubernetes", "submit", "--image", "r/i:1", "--dry-run", *options, "--", str(path)]) == 0
    return {document["kind"]: document for document in yaml.safe_load_all(capsys.readouterr().out)}


def test_a_jobset_has_the_pods_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = rendered(tmp_path, capsys, "--nodes", "2", "--gpus", "8")["Job"]
    found = rendered(tmp_path, capsys, "--nodes", "2", "--gpus", "8", "--jobset")
    assert set(found) == {"ConfigMap", "ServiceAccount", "JobSet"}
    spec = found["JobSet"]["spec"]
    (replicated,) = spec["replicatedJobs"]
    inner = replicated["template"]["spec"]
    assert (inner["completions"], inner["parallelism"], inner["completionMode"]) == (2, 2, "Indexed")
    assert inner["podFailurePolicy"] == job["spec"]["podFailurePolicy"]
    name = found["JobSet"]["metadata"]["name"]
    pod, before = inner["template"]["spec"], job["spec"]["template"]["spec"]
    changed = {"INDEXTTS_MEETING": f"{name}-{replicated['name']}-0-0.{name}:29400"}
    (container,), (same,) = pod.pop("containers"), before.pop("containers")
    environment = {one["name"]: one.get("value") for one in container.pop("env")}
    assert environment == {one["name"]: one.get("value") for one in same.pop("env")} | changed
    assert container == same
    assert before.pop("subdomain") == spec["network"]["subdomain"] == name
    assert pod == before
    assert spec["failurePolicy"]["maxRestarts"] == job["spec"]["backoffLimit"]
    (rule,) = spec["failurePolicy"]["rules"]
    assert set(rule) == {"name", "action", "onJobFailureReasons"}  # what its schema demands
    assert inner["backoffLimit"] == 0


def test_a_queue_admits_the_whole_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobset = rendered(tmp_path, capsys, "--nodes", "2", "--jobset", "--queue", "team-a")["JobSet"]
    assert jobset["spec"]["suspend"] is True
    assert jobset["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    inner = jobset["spec"]["replicatedJobs"][0]["template"]
    assert "kueue.x-k8s.io/queue-name" not in inner["metadata"]["labels"]
    assert "suspend" not in inner["spec"]


def test_it_is_for_several_nodes_and_for_kubectl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file(tmp_path)
    command = ["kubernetes", "submit", "--image", "r/i:1", "--jobset"]
    assert main([*command, "--dry-run", "--", str(path)]) == 78
    assert "give --nodes" in capsys.readouterr().err
    assert main([*command, "--nodes", "2", "--", str(path)]) == 78
    assert "add --dry-run" in capsys.readouterr().err
