"""What `kubectl apply` is given: the manifest, its overlays, and every trap that Kubernetes sets."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_REFUSED, EXIT_STOPPED, ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.hardware.scheduler import read_scheduler
from indextts_job.preemption.clouds import known_clouds
from indextts_job.training.distributed import Place, read_place
from indextts_job.training.processes import Nodes, read_nodes, wanted_processes
from launch.cli import main
from launch.job import Job
from launch.kubernetes.manifest import (
    Cloud,
    KubernetesOptions,
    comparable,
    differences,
    name_of_run,
    remote_config,
    render,
    spot,
)
from tests.kubernetes.cluster import VERSION, Cluster, action_for, environment_of
from tests.support.warm_parent import REPOSITORY

FOLDER = REPOSITORY / "k8s"
OVERLAYS = sorted(path.parent.name for path in FOLDER.glob("overlays/*/kustomization.yaml"))
CLOUDS: dict[str, Cloud] = {"eks-karpenter-spot": "eks", "gke-spot": "gke", "aks-spot": "aks"}
Documents = dict[str, dict[str, Any]]


def by_kind(text: str) -> Documents:
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture(scope="session")
def build() -> Callable[[str], Documents]:
    if shutil.which("kubectl") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "kubectl not installed: apt-get install kubernetes-client"
        )

    @cache
    def built(overlay: str) -> str:
        folder = FOLDER / "overlays" / overlay
        done = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout

    return lambda overlay: by_kind(built(overlay))


@pytest.fixture(params=["job.yaml", *OVERLAYS])
def manifest(request: pytest.FixtureRequest, build: Callable[[str], Documents]) -> Documents:
    if request.param == "job.yaml":
        return by_kind((FOLDER / "job.yaml").read_text(encoding="utf-8"))
    return build(request.param)


@pytest.fixture
def job(manifest: Documents) -> dict[str, Any]:
    spec: dict[str, Any] = manifest["Job"]["spec"]
    return spec


@pytest.fixture
def pod(job: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = job["template"]["spec"]
    return spec


@pytest.fixture
def trainer(pod: dict[str, Any]) -> dict[str, Any]:
    (container,) = pod["containers"]
    found: dict[str, Any] = container
    return found


# ---- as committed


def test_the_committed_manifest_is_what_the_launcher_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kubernetes", "submit", "--dry-run"]) == 0
    assert capsys.readouterr().out == (FOLDER / "job.yaml").read_text(encoding="utf-8")


def test_it_passes_strict_validation(manifest: Documents) -> None:
    assert set(manifest) == {"ConfigMap", "ServiceAccount", "Job"}
    for document in manifest.values():
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("overlay", CLOUDS)
def test_an_overlay_says_what_the_launcher_says(overlay: str, build: Callable[[str], Documents]) -> None:
    built = build(overlay)
    rendered = by_kind(render(*spot(CLOUDS[overlay], Job(), KubernetesOptions())))
    assert list(differences(built["Job"], rendered["Job"])) == []
    assert built["ConfigMap"] == rendered["ConfigMap"]
    assert built["ServiceAccount"]["metadata"]["annotations"]  # the cloud's identity, to edit


def test_the_endpoint_overlay_says_what_the_launcher_says(build: Callable[[str], Documents]) -> None:
    options = KubernetesOptions(endpoint_url="https://s3.example.com", secret="indextts-s3")  # noqa: S106  # a name
    built, rendered = (
        found["Job"]["spec"]["template"]["spec"]["containers"][0]
        for found in (build("s3-endpoint"), by_kind(render(Job(), options)))
    )
    for found in (built, rendered):
        found["env"].sort(key=lambda entry: entry["name"])
    assert built == rendered


# ---- the traps


def test_the_rules_come_in_the_order_that_works(manifest: Documents) -> None:
    def action(code: int, *conditions: str) -> str:
        terminated = {"terminated": {"exitCode": code}}
        status = {
            "conditions": [{"type": kind, "status": "True"} for kind in conditions],
            "containerStatuses": [{"name": "trainer", "state": terminated}],
        }
        return action_for(manifest["Job"], {"status": status})

    for code in (1, 65, 69, 70, 75, 77, 78, 137, 143):
        assert action(code, "DisruptionTarget") == "Ignore"  # an evicted pod has an exit code too
    for code in (EXIT_DATA, EXIT_REFUSED, EXIT_CONFIG):
        assert action(code) == "FailJob"
    assert action(EXIT_STOPPED) == "Ignore"
    for code in (1, 69, 70, 137, 143):
        assert action(code) == "Count"


def test_rules_name_the_container_and_their_values_ascend(job: dict[str, Any], trainer: dict[str, Any]) -> None:
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes")
        if codes:
            assert codes["containerName"] == trainer["name"]
            assert codes["values"] == sorted(set(codes["values"]))
            assert 0 not in codes["values"]


def test_no_two_pods_run_at_once(job: dict[str, Any], pod: dict[str, Any]) -> None:
    assert job["podReplacementPolicy"] == "Failed"
    assert pod["restartPolicy"] == "Never"  # demanded by the failure policy, and never a restart in place
    assert "restartPolicy" not in pod["containers"][0]
    assert not {"parallelism", "completions", "completionMode", "selector", "activeDeadlineSeconds"} & job.keys()


def test_the_trainer_knows_the_grace_that_the_kubelet_gives(pod: dict[str, Any], trainer: dict[str, Any]) -> None:
    values = {entry["name"]: entry.get("value") for entry in trainer["env"]}
    assert values["GRACE_SECONDS"] == str(pod["terminationGracePeriodSeconds"])
    place = trainer["args"].index("--grace-seconds")
    assert trainer["args"][place + 1] == "$(GRACE_SECONDS)"
    assert "lifecycle" not in trainer  # a preStop hook would take its time from the grace


def test_the_trainer_gets_the_signal(trainer: dict[str, Any]) -> None:
    assert "command" not in trainer  # the image's entry point is tini; a shell would swallow SIGTERM
    assert trainer["args"][0] == "train"
    docker = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
    assert '\nENTRYPOINT ["/usr/bin/tini", "--", "indextts-job"]\n' in docker


def test_pods_are_restricted(pod: dict[str, Any], trainer: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001  # a number: the kubelet cannot check a name
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert trainer["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        assert key not in pod


def test_what_is_written_has_a_place(pod: dict[str, Any], trainer: dict[str, Any]) -> None:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in trainer["volumeMounts"]}
    assert set(mounts.values()) == set(volumes)
    assert len(mounts) == len(trainer["volumeMounts"])
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"  # 64 MiB without  # noqa: S108
    assert "emptyDir" in volumes[mounts["/tmp"]]  # noqa: S108
    assert all(path.startswith("/") for path in mounts)


def test_resources_are_whole_and_equal(trainer: dict[str, Any]) -> None:
    requests, limits = trainer["resources"]["requests"], trainer["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in requests  # equal to the limit by itself
    assert requests["memory"] == limits["memory"]
    assert re.fullmatch(r"\d+Gi", requests["memory"])  # 400m would be 0.4 byte
    assert "cpu" not in limits


def test_everything_the_pod_refers_to_is_there(manifest: Documents, pod: dict[str, Any]) -> None:
    (config,) = (volume["configMap"]["name"] for volume in pod["volumes"] if "configMap" in volume)
    assert manifest["ConfigMap"]["metadata"]["name"] == config
    assert manifest["ServiceAccount"]["metadata"]["name"] == pod["serviceAccountName"]
    assert manifest["ConfigMap"]["immutable"] is True
    assert "run.yaml" in manifest["ConfigMap"]["data"]


def test_no_key_stands_in_a_manifest(manifest: Documents) -> None:
    assert not re.search(r"SECRET_ACCESS_KEY|AKIA|password", json.dumps(manifest))


def test_names_and_labels_are_short_enough(manifest: Documents) -> None:
    for document in manifest.values():
        name = document["metadata"]["name"]
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name)
        for key, value in document["metadata"]["labels"].items():
            assert len(value) <= 63, key
        assert "namespace" not in document["metadata"]


def test_it_does_not_need_what_newer_clusters_have(job: dict[str, Any]) -> None:
    assert "managedBy" not in job
    assert "successPolicy" not in job


@pytest.mark.parametrize("overlay", CLOUDS)
def test_spot_nodes_are_selected_and_tolerated(overlay: str, build: Callable[[str], Documents]) -> None:
    pod = build(overlay)["Job"]["spec"]["template"]["spec"]
    ((selector, value),) = pod["nodeSelector"].items()
    taints = {toleration["key"] for toleration in pod["tolerations"]}
    assert isinstance(value, str)  # a bare true would be a boolean, which the API refuses
    assert "nvidia.com/gpu" in taints
    assert overlay == "eks-karpenter-spot" or selector in taints  # Karpenter does not taint spot nodes
    for toleration in pod["tolerations"]:
        assert ("value" in toleration) == (toleration["operator"] == "Equal")


# ---- rendering


def test_a_job_s_values_reach_the_manifest(tmp_path: Path) -> None:
    job = Job(
        arguments=("run.yaml", "recipe.seed=3", "a=$(HOME)"), name="am", image="r/i:1", gpus=0, cpus=2, memory_gib=8
    )
    options = KubernetesOptions(
        config="---\nrun: s3://b/r # kind: ServiceAccount\n\ndata: {train_manifests: ['s3://b/Ḏ']}\n",
        service_account="mine",
        node_selector={"gpu": "l4"},
        endpoint_url="http://s",
        secret="keys",  # noqa: S106  # a name
    )
    found = by_kind(render(job, options))
    assert set(found) == {"ConfigMap", "Job"}
    assert yaml.safe_load(found["ConfigMap"]["data"]["run.yaml"])["data"]["train_manifests"] == ["s3://b/Ḏ"]
    pod = found["Job"]["spec"]["template"]["spec"]
    (trainer,) = pod["containers"]
    assert trainer["args"][-2:] == ["recipe.seed=3", "a=$$(HOME)"]
    assert "run.yaml" not in trainer["args"]
    assert trainer["resources"]["limits"] == {"memory": "8Gi"}
    assert trainer["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod["serviceAccountName"] == "mine"
    assert pod["nodeSelector"] == {"gpu": "l4"}
    for document in found.values():
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_several_nodes_have_names_to_meet_by() -> None:
    text = render(Job(name="am", nodes=3, gpus=8), KubernetesOptions())
    found = by_kind(text)
    for document in found.values():
        kubernetes_validate.validate(document, VERSION, strict=True)
    spec = found["Job"]["spec"]
    assert (spec["completionMode"], spec["completions"], spec["parallelism"]) == ("Indexed", 3, 3)
    assert spec["backoffLimit"] == 3 * KubernetesOptions().backoff_limit  # a lost node fails the pods of all others
    pod = spec["template"]["spec"]
    service = found["Service"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True  # the others look for the first before it is ready
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": "am"}
    values = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert values["INDEXTTS_NODES"] == "3"
    assert values["INDEXTTS_MEETING"] == f"am-0.{pod['subdomain']}:{service['spec']['ports'][0]['port']}"
    with pytest.raises(ConfigError, match="shorter"):
        render(Job(name="a" * 62, nodes=3), KubernetesOptions())


@pytest.mark.parametrize("node", ["ip-10-0-3-7.ec2.internal", "3"])
def test_every_reader_of_a_pod_s_environment_understands_it(node: str, tmp_path: Path) -> None:
    job = Cluster().create("jobs", by_kind(render(Job(name="am", nodes=2, gpus=8), KubernetesOptions()))["Job"], {})
    gpus = tmp_path / "dev"
    gpus.mkdir()
    for index in range(8):
        (gpus / f"nvidia{index}").touch()
    for index in range(2):
        environment = environment_of(job, node, index)
        assert read_nodes(environment) == Nodes(count=2, index=index, meeting="am-0.am:29400")
        assert read_scheduler(environment) == {
            "kind": "kubernetes",
            "chain": f"am/{job['metadata']['uid']}",
            "node": node,
            "pod": f"am-{index}-x7k2p",
        }
        assert wanted_processes(HardwareConfig(), environment, gpus) == 8
        assert read_place(environment) == Place()
        assert known_clouds(environment)
    single = Cluster().create("jobs", by_kind(render(Job(name="am"), KubernetesOptions()))["Job"], {})
    assert read_nodes(environment_of(single, node)) == Nodes()


@pytest.mark.parametrize("name", ["", "Am", "a_b", "-a", "a.b", "a" * 64])
def test_a_name_that_kubernetes_refuses_is_refused_here(name: str) -> None:
    with pytest.raises(ConfigError, match="lowercase letters, digits"):
        render(Job(name=name), KubernetesOptions())


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("s3://b/runs/amharic", "amharic"),
        ("s3://b/runs/Amharic_v2/", "amharic-v2"),
        ("s3://b/\u12a0", "indextts"),
        ("s3://b/" + "x" * 80, "x" * 52),
    ],
)
def test_the_name_comes_from_the_run(run: str, name: str) -> None:
    assert name_of_run(run) == name
    render(Job(name=name), KubernetesOptions())


def config_file(folder: Path, **changes: object) -> Path:
    document: dict[str, object] = {
        "run": "s3://b/runs/am",
        "inputs": {
            "model_config": "s3://b/config.yaml",
            "base_checkpoint": "s3://b/gpt.pth",
            "tokenizer": "s3://b/bpe.model",
        },
        "data": {"train_manifests": ["s3://b/train"]},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document | changes), encoding="utf-8")
    return path


def test_a_configuration_is_checked_before_it_is_queued(tmp_path: Path) -> None:
    path = config_file(tmp_path)
    text, run = remote_config(Job(arguments=(str(path), "recipe.seed=3")))
    assert run == "s3://b/runs/am"
    assert text == path.read_text(encoding="utf-8")
    for arguments, message in (
        ((), "no configuration given"),
        (("s3://b/run.yaml",), "keeps its own copy"),
        ((str(tmp_path / "missing.yaml"),), "No such file"),
        ((str(path), "recipe.sed=3"), "recipe.seed"),
        ((str(path), "run=runs/am"), r"disk of a pod.*\n  run: runs/am\n"),
    ):
        with pytest.raises(ConfigError, match=message):
            remote_config(Job(arguments=arguments))


def test_differences_name_the_field() -> None:
    live = {"a": 1, "b": [{"name": "x", "v": 1}, {"name": "y"}], "c": {"d": "old"}, "only": True}
    wanted = {"a": 1, "b": [{"name": "x", "v": 2}, {"name": "y"}], "c": {"d": "new"}, "more": [1]}
    assert list(differences(live, wanted)) == [
        "b[x].v: 1 runs, 2 asked for",
        "c.d: old runs, new asked for",
        "more: nothing runs, [1] asked for",
        "only: true runs, nothing asked for",
    ]
    assert list(differences(live, live)) == []


def test_what_the_server_adds_is_no_difference() -> None:
    document = by_kind((FOLDER / "job.yaml").read_text(encoding="utf-8"))["Job"]
    api = Cluster()
    one = api.create("jobs", document, {})
    other = {**document, "metadata": {**document["metadata"], "name": "other"}}
    assert list(differences(comparable(one), comparable(api.create("jobs", other, {})))) == []
