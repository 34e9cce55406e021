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

from indextts_job.attempt.nodes import Nodes, read_nodes, wanted_processes
from indextts_job.errors import EXIT_CONFIG, EXIT_DATA, EXIT_REFUSED, EXIT_STOPPED, ConfigError
from indextts_job.hardware.plan import HardwareConfig
from indextts_job.preemption.clouds import known_clouds
from indextts_job.scheduler import read_scheduler
from indextts_job.storage.node_cache import node_folder
from indextts_job.training.distributed import World, read_world
from launch.cli import main
from launch.job import Job
from launch.kubernetes.differences import comparable, config_map_of, differences
from launch.kubernetes.manifest import (
    SEPARATOR,
    Cloud,
    KubernetesOptions,
    config_name,
    render,
)
from launch.kubernetes.remote_run import name_of_run, remote_config
from launch.kubernetes.spot import spot
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
    def built(folder: str) -> str:
        path = FOLDER / folder
        done = subprocess.run(["kubectl", "kustomize", str(path)], capture_output=True, text=True, check=True)
        assert not done.stderr
        return done.stdout

    return lambda name: by_kind(built(name if name == "base" else f"overlays/{name}"))


@pytest.fixture(params=["base", *OVERLAYS])
def manifest(request: pytest.FixtureRequest, build: Callable[[str], Documents]) -> Documents:
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


def test_the_committed_base_is_what_the_launcher_prints(
    capsys: pytest.CaptureFixture[str], build: Callable[[str], Documents]
) -> None:
    assert main(["kubernetes", "submit", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    built, rendered = build("base"), by_kind(printed)
    assert built == rendered  # the hash in the name of the ConfigMap too
    # Comments as well: in place of the ConfigMap, which kustomize makes, stands nothing.
    head, _, rest = printed.partition("\napiVersion: v1\nkind: ConfigMap")
    without = f"{head}\n{rest.partition(SEPARATOR)[2]}".replace(rendered["ConfigMap"]["metadata"]["name"], "indextts")
    assert without == (FOLDER / "base/job.yaml").read_text(encoding="utf-8")
    assert rendered["ConfigMap"]["data"]["run.yaml"] == (FOLDER / "base/run.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("text", ["a: <b> & 'c'\n", "a: \u1230\u120b\u121d\n", "\n", "a: 1", 'a: "\\n"\n'])
def test_the_hash_is_that_of_kustomize(tmp_path: Path, text: str, build: Callable[[str], Documents]) -> None:
    (tmp_path / "run.yaml").write_text(text.rstrip() + "\n", encoding="utf-8")
    generator = {"configMapGenerator": [{"name": "am", "files": ["run.yaml"]}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(generator), encoding="utf-8")
    assert build(f"../{os.path.relpath(tmp_path, FOLDER)}")["ConfigMap"]["metadata"]["name"] == config_name("am", text)


def test_another_configuration_is_another_config_map() -> None:
    one, other = (by_kind(render(Job(), KubernetesOptions(config=f"run: s3://b/{name}\n"))) for name in "ab")
    names = {found["ConfigMap"]["metadata"]["name"] for found in (one, other)}
    assert len(names) == 2
    for found in (one, other):
        assert config_map_of(found["Job"]) == found["ConfigMap"]["metadata"]["name"]


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
    for code in (EXIT_STOPPED, 255):  # a node that restarted leaves 255
        assert action(code) == "Ignore"
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
    world = trainer["args"].index("--grace-seconds")
    assert trainer["args"][world + 1] == "$(GRACE_SECONDS)"
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
    assert volumes[mounts["/tmp"]]["emptyDir"]["sizeLimit"] == "10Gi"  # noqa: S108
    # Copies of shards have a volume without a limit: the trainer leaves a share of the disk free, and a limit of the
    # volume, which it cannot see, would evict the pod.
    copies = Path("/tmp") / node_folder("").name  # noqa: S108
    assert volumes[mounts[str(copies)]]["emptyDir"] == {}
    assert yaml.safe_load((FOLDER / "base/run.yaml").read_text(encoding="utf-8"))["data"]["cache_free_ratio"] > 0.1
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
        arguments=("run.yaml", "recipe.seed=3", "a=$(HOME)$$(B)$"),
        name="am",
        image="r/i:1",
        gpus=0,
        cpus=2,
        memory_gib=8,
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
    assert [expanded(text) for text in trainer["args"][-2:]] == ["recipe.seed=3", "a=$(HOME)$$(B)$"]
    assert "run.yaml" not in trainer["args"]
    assert trainer["resources"]["limits"] == {"memory": "8Gi"}
    assert trainer["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod["serviceAccountName"] == "mine"
    assert pod["nodeSelector"] == {"gpu": "l4"}
    for document in found.values():
        kubernetes_validate.validate(document, VERSION, strict=True)


def expanded(text: str) -> str:
    """An argument as the kubelet hands it to a container that has no variable of the names in it."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda found: "$" if found[0] == "$$" else "LOST", text)


CONFIGS = {
    "an indented comment first": "   # mine\nrun: s3://b/r\n",
    "empty lines first": "\n\n  # mine\nrun: s3://b/r\n",
    "several documents' marks": "---\nrun: s3://b/r\n...\n",
    "other line breaks": "run: 's3://b/r'\nnote: 'a\u2028b\x85c\u2029d'\n",
    "blank ends": "run: s3://b/r\n\n\n   \n",
    "a block": "run: s3://b/r\nnote: |\n  one\n\n   two\n",
    "no line break at the end": "run: s3://b/r",
    "emoji": "run: s3://b/\U0001f389\n",
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_comes_out_as_it_went_in(case: str) -> None:
    text = CONFIGS[case]
    found = by_kind(render(Job(), KubernetesOptions(config=text)))
    assert found["ConfigMap"]["data"]["run.yaml"] == text.rstrip() + "\n"


@pytest.mark.parametrize("name", ["123", "1e3", "null", "true", "0x1f", "1-1"])
def test_a_name_stays_a_name(name: str) -> None:
    found = by_kind(render(Job(name=name, image="r/i:1"), KubernetesOptions(service_account=name)))
    assert found["Job"]["metadata"]["name"] == name
    assert found["Job"]["spec"]["template"]["spec"]["serviceAccountName"] == name
    for document in found.values():
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize(
    ("job", "options", "named"),
    [
        ({"image": "i:1 # no\n          command: [sh]"}, {}, "--image"),
        ({"image": "i 1"}, {}, "--image"),
        ({}, {"service_account": "a\nhostPID: true"}, "--service-account"),
        ({}, {"service_account": "A"}, "--service-account"),
        ({}, {"secret": "a b"}, "--secret"),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(job: Any, options: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        render(Job(**job), KubernetesOptions(**options))


@pytest.mark.parametrize("image", ["r/i@sha256:0a", "'r/i'", "{a}", "*i", "&i", "r/i:#1", "1.0", "r:", "?"])
def test_an_image_is_read_as_it_was_given(image: str) -> None:
    found = by_kind(render(Job(image=image), KubernetesOptions()))
    assert found["Job"]["spec"]["template"]["spec"]["containers"][0]["image"] == image


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
        assert read_world(environment) == World()
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
    document = by_kind(render(Job(), KubernetesOptions()))["Job"]
    api = Cluster()
    one = api.create("jobs", document, {})
    other = {**document, "metadata": {**document["metadata"], "name": "other"}}
    assert list(differences(comparable(one), comparable(api.create("jobs", other, {})))) == []
