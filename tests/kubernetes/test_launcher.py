"""The launcher against the API over HTTP, with the real client."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from indextts_job.cli import main as indextts_job
from indextts_job.demo.world import World
from indextts_job.errors import AccessRefusedError, ConfigError, UnavailableError
from launch.cli import main
from launch.kubernetes.cluster import KubernetesCluster
from launch.kubernetes.differences import comparable, config_map_of, differences
from launch.kubernetes.replacement import pause_s, replacement_text
from tests.kubernetes.api_server import ApiServer
from tests.kubernetes.test_manifests import FOLDER, config_file
from tests.support.attempts import attempt
from tests.support.runs import config_for
from tests.support.warm_parent import REPOSITORY

NAME = "am"


class Said(list[str]):
    """What the launcher said."""

    @property
    def text(self) -> str:
        return "\n".join(self)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def cluster(api: ApiServer, said: Said, waits: list[float]) -> KubernetesCluster:
    return KubernetesCluster(say=said.append, wait=waits.append)


@pytest.fixture
def submit(api: ApiServer, tmp_path: Path) -> Callable[..., int]:
    path = config_file(tmp_path)

    def submit(*options: str, settings: tuple[str, ...] = ()) -> int:
        return main(["kubernetes", "submit", "--image", "r/i:1", *options, "--", str(path), *settings])

    return submit


@pytest.fixture
def manifest(submit: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> str:
    assert submit("--dry-run") == 0
    return capsys.readouterr().out


def verbs(api: ApiServer, resource: str = "") -> list[str]:
    return [f"{verb} {path}" for verb, path, _ in api.requests if path.startswith(resource)]


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], None]], threading.Thread]]:
    threads = []

    def begin(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work)
        thread.start()
        threads.append(thread)
        return thread

    yield begin
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def config_map(api: ApiServer) -> dict[str, Any]:
    """The only ConfigMap that is there."""
    (found,) = (document for (kind, _), document in api.cluster.objects.items() if kind == "configmaps")
    return found


def left(api: ApiServer) -> set[tuple[str, str]]:
    """What is still there, besides events, which the cluster forgets by itself."""
    return {(kind, name) for kind, name in api.cluster.objects if kind != "events"}


# ---- submit


def test_a_run_is_submitted_once(
    api: ApiServer, submit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit() == 0
    assert "job am is submitted to namespace lab" in capsys.readouterr().out
    assert {kind for kind, name in api.cluster.objects if name == NAME} == {"jobs", "serviceaccounts"}
    assert config_map(api)["metadata"]["ownerReferences"][0]["uid"] == api.cluster.job(NAME)["metadata"]["uid"]
    before = dict(api.cluster.objects)
    assert submit() == 0
    assert "the same as this one: nothing to do" in capsys.readouterr().out
    assert api.cluster.objects == before
    assert all(query["fieldValidation"] == "Strict" for verb, _, query in api.requests if verb == "create")


def test_a_changed_run_is_refused_with_the_difference(
    submit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit() == 0
    assert submit("--memory-gib", "32", "--image", "r/i:2", "--node-selector", "gpu=l4") == 78
    shown = capsys.readouterr().err
    assert "job am in namespace lab is running already, with other settings" in shown
    assert "containers[trainer].image: r/i:1 runs, r/i:2 asked for" in shown
    assert "containers[trainer].resources.limits.memory: 64Gi runs, 32Gi asked for" in shown
    assert 'nodeSelector: nothing runs, {"gpu": "l4"} asked for' in shown
    assert "indextts-launch kubernetes cancel am" in shown


def test_a_changed_configuration_is_a_difference(
    submit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit() == 0
    config_file(tmp_path, recipe={"seed": 5})
    assert submit() == 78
    assert "run.yaml: recipe: nothing runs" in capsys.readouterr().err
    config_file(tmp_path)
    assert submit(settings=("recipe.seed=5",)) == 78
    assert "args: " in capsys.readouterr().err


def test_a_run_that_is_complete_takes_no_gpu(
    api: ApiServer, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    config = config_for(
        world,
        f"file://{tmp_path}/run",
        inputs__model_config=f"file://{world.model_config}",
        inputs__base_checkpoint=f"file://{world.base_checkpoint}",
        inputs__tokenizer=f"file://{world.tokenizer}",
        data__train_manifests=[f"file://{world.train_manifest}"],
        data__validation_manifests=[f"file://{world.validation_manifest}"],
        schedule__max_steps=2,
    )
    path.write_text(yaml.safe_dump(config.to_json()), encoding="utf-8")

    def submit(*arguments: str) -> str:
        assert main(["kubernetes", "submit", "--image", "r/i:1", "--", str(path), *arguments]) == 0
        output = capsys.readouterr().out
        for kind, name in list(api.cluster.objects):
            api.cluster.objects.pop((kind, name))
        return output

    assert attempt(config).code == 0
    assert "the run is complete at step 2: nothing to submit" in submit()
    # What decides nothing about a complete run, and what the trainer has to decide.
    assert "nothing to submit" in submit("--save-interval", "7", "storage.retry_seconds=9")
    for changed in (
        ("schedule.max_steps=3",),
        ("--max-steps=3",),
        ("--max-steps", "3"),
        ("--output-dir", f"file://{tmp_path}/other", "--resume", f"file://{tmp_path}/run", "--no-load-optimizer"),
        ("validation.early_stopping_patience=4",),
        ("adapter.rank=4",),
        ("inputs.base_checkpoint=file:///another.pth",),
    ):
        assert " is submitted" in submit(*changed), changed
    next((tmp_path / "run/objects").iterdir()).unlink()
    assert " is submitted" in submit()  # an attempt says what is lost


def test_a_complete_run_is_known_by_what_its_file_says(
    api: ApiServer, world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints record variables as they are written, so that another place of the data is the same run."""
    monkeypatch.setenv("DATA", f"file://{world.folder}")
    written = "${DATA}" + str(world.train_manifest).removeprefix(str(world.folder))
    config = config_for(world, f"file://{tmp_path}/run", schedule__max_steps=2)
    document = config.to_json()
    document["data"] |= {"train_manifests": [written], "validation_manifests": []}
    document["inputs"] = {key: f"file://{value}" for key, value in document["inputs"].items()}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    assert indextts_job(["train", str(path)]) == 0
    capsys.readouterr()
    assert main(["kubernetes", "submit", "--image", "r/i:1", "--", str(path)]) == 0
    assert "the run is complete at step 2" in capsys.readouterr().out
    assert left(api) == set()


def test_an_option_that_was_dropped_is_a_difference_too(
    submit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("--spot", "gke") == 0
    assert submit() == 78
    shown = capsys.readouterr().err
    assert "terminationGracePeriodSeconds: 15 runs, 60 asked for" in shown
    assert "nodeSelector: " in shown


def test_what_a_queue_or_an_admin_changes_is_none(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, said: Said
) -> None:
    cluster.submit(manifest)
    api.cluster.job(NAME)["spec"]["suspend"] = True
    api.cluster.job(NAME)["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = "gpu"
    cluster.submit(manifest)
    assert "nothing to do" in said[-1]


def test_a_complete_run_stays_and_a_failed_one_is_taken_up_again(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, said: Said
) -> None:
    cluster.submit(manifest)
    assert api.cluster.end_pod(api.cluster.start_pod(NAME), 77) == "FailJob"
    first = api.cluster.job(NAME)["metadata"]["uid"]
    cluster.submit(manifest)
    assert "has ended (failed, PodFailurePolicy" in said.text
    assert api.cluster.job(NAME)["metadata"]["uid"] != first
    assert not [name for kind, name in api.cluster.objects if kind == "pods"]  # none is orphaned
    assert api.cluster.end_pod(api.cluster.start_pod(NAME), 0) == "Complete"
    cluster.submit(manifest)
    assert said[-1] == "job am is complete: nothing to do"


def test_a_job_that_is_still_ending_is_waited_for(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, said: Said
) -> None:
    cluster.submit(manifest)
    pod = api.cluster.start_pod(NAME)
    api.cluster.delete("jobs", NAME, {"propagationPolicy": "Foreground"})

    def when_watched(verb: str, resource: str) -> None:
        if said and "still ending" in said[-1] and (verb, resource) == ("get", "jobs"):
            api.on_request = lambda _verb, _resource: None
            api.cluster.end_pod(pod, 75)

    api.on_request = when_watched
    cluster.submit(manifest)
    assert "job am is submitted" in said[-1]


def test_two_submissions_in_one_moment_make_one_job(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, said: Said
) -> None:
    job = next(document for document in yaml.safe_load_all(manifest) if document["kind"] == "Job")

    def meanwhile(verb: str, resource: str) -> None:
        if (verb, resource) == ("create", "serviceaccounts"):
            api.on_request = lambda _verb, _resource: None
            api.cluster.create("jobs", job, {})

    api.on_request = meanwhile
    cluster.submit(manifest)
    assert "nothing to do" in said[-1]


def test_a_new_configuration_reaches_the_next_job(
    api: ApiServer, submit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit() == 0
    first = config_map(api)["metadata"]["name"]
    assert main(["kubernetes", "cancel", NAME]) == 0
    assert not [kind for kind, _ in api.cluster.objects if kind == "configmaps"]
    config_file(tmp_path, recipe={"seed": 5})
    assert submit() == 0
    found = config_map(api)
    assert found["metadata"]["name"] != first
    assert yaml.safe_load(found["data"]["run.yaml"])["recipe"] == {"seed": 5}
    assert config_map_of(api.cluster.job(NAME)) == found["metadata"]["name"]


def test_a_configuration_goes_with_its_job_however_that_ends(
    api: ApiServer, cluster: KubernetesCluster, manifest: str
) -> None:
    cluster.submit(manifest)
    api.cluster.delete("jobs", NAME, {})  # by its time to live, or by kubectl
    assert not [kind for kind, _ in api.cluster.objects if kind == "configmaps"]


def test_a_configuration_that_is_just_being_removed_is_there_for_the_next_job(
    api: ApiServer, cluster: KubernetesCluster, manifest: str
) -> None:
    # The garbage collector is slow: the ConfigMap of an earlier job still stands when the next one is submitted.
    cluster.submit(manifest)
    owned = config_map(api)
    api.cluster.delete("jobs", NAME, {})
    api.cluster.objects["configmaps", owned["metadata"]["name"]] = owned

    def meanwhile(verb: str, resource: str) -> None:
        if (verb, resource) == ("patch", "configmaps"):
            api.on_request = lambda _verb, _resource: None
            del api.cluster.objects["configmaps", owned["metadata"]["name"]]

    api.on_request = meanwhile
    cluster.submit(manifest)
    assert config_map(api)["metadata"]["ownerReferences"][0]["uid"] == api.cluster.job(NAME)["metadata"]["uid"]


def test_an_identity_reaches_an_account_that_is_there(api: ApiServer, submit: Callable[..., int]) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME, "annotations": {"x": "y"}}}
    api.cluster.create("serviceaccounts", account, {})
    assert submit("--identity", "eks.amazonaws.com/role-arn=arn:aws:iam::1:role/r") == 0
    annotations = api.cluster.objects["serviceaccounts", NAME]["metadata"]["annotations"]
    assert annotations == {"x": "y", "eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}


# ---- refusals


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--cpus", "-1"), 78, "--cpus -1: expected at least 1"),
        (("--scratch-gib", "-1"), 78, "resources.requests[ephemeral-storage]: Invalid value"),
        (("--namespace", "nowhere"), 78, 'namespaces "nowhere" not found'),
        (("--context", "nowhere"), 78, "no cluster to talk to"),
        (("--name", "A_b"), 78, "lowercase letters"),
        (("--image", ""), 78, "no image given"),
        (("--identity", "novalue"), 78, "expected KEY=VALUE"),
    ],
)
def test_refusals_are_one_message(
    submit: Callable[..., int],
    api: ApiServer,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    code: int,
    message: str,
) -> None:
    assert submit(*options) == code
    shown = capsys.readouterr()
    assert shown.err.startswith("error: ")
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert api.cluster.objects == {}  # refused before anything was created


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((401, "Unauthorized", "Unauthorized"), AccessRefusedError, "does not accept your credentials"),
        ((403, "Forbidden", "jobs is forbidden: exceeded quota: q"), UnavailableError, "exceeded quota"),
        ((403, "Forbidden", "jobs is forbidden: no"), AccessRefusedError, "ClusterRole `edit`"),
        ((400, "BadRequest", "strict decoding error: unknown field"), ConfigError, "unknown field"),
        ((409, "Conflict", "the object has been modified"), ConfigError, "has been modified"),
    ],
)
def test_what_the_api_refuses_has_the_right_class(
    api: ApiServer,
    cluster: KubernetesCluster,
    manifest: str,
    answer: tuple[int, str, str],
    kind: type[Exception],
    message: str,
) -> None:
    api.answers = [answer]
    with pytest.raises(kind, match=message):
        cluster.submit(manifest)


def test_a_busy_server_is_asked_again(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, said: Said, waits: list[float]
) -> None:
    api.answers = [(429, "TooManyRequests", "busy"), (503, "ServiceUnavailable", "starting"), (500, "x", "y")]
    cluster.submit(manifest)
    assert "job am is submitted" in said[-1]
    assert len(waits) == 3
    assert len(said) == 2  # one line for the trouble
    api.answers = [(429, "TooManyRequests", "busy")] * 100
    with pytest.raises(UnavailableError, match=r"busy, after 60 s of trying"):
        cluster.submit(manifest)


def test_a_server_that_is_away_is_said_so(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, waits: list[float]
) -> None:
    api.stop()
    with pytest.raises(
        UnavailableError,
        match=r"127.0.0.1:\d+ cannot be reached \(Failed to establish a new connection: .* refused\)\.$",
    ):
        cluster.submit(manifest)
    assert sum(waits) == pytest.approx(60)


def test_without_a_cluster_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert main(["kubernetes", "status"]) == 78
    assert "Make `kubectl get jobs` work first" in capsys.readouterr().err


# ---- status


def test_status_tells_what_pods_wait_for_and_how_they_ended(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.submit(manifest)
    assert cluster.status(NAME).state == "waiting, no pod yet"
    crashed = api.cluster.start_pod(NAME)
    assert api.cluster.end_pod(crashed, 70, message="line\nerror: loss is not finite\n") == "Count"
    waiting = api.cluster.start_pod(NAME)
    api.cluster.wait_for_container(waiting, "ImagePullBackOff", "Back-off pulling image")
    api.cluster.warn(NAME, "FailedCreate", "serviceaccount not found")
    api.cluster.warn("another", "BackOff", "not ours")
    found = cluster.status(NAME)
    assert found.state == "1 active, 1 ready, 1 failed"
    assert [pod.why for pod in found.pods] == [
        "exit code 70, unexpected error",
        "ImagePullBackOff Back-off pulling image",
    ]
    assert found.pods[0].last_error == "error: loss is not finite"
    assert found.warnings == ["FailedCreate: serviceaccount not found"]
    assert main(["kubernetes", "status", NAME]) == 0
    assert "error: loss is not finite" in capsys.readouterr().out
    assert main(["kubernetes", "status", "other"]) == 78
    assert "no job other in namespace lab; jobs of this program there: am." in capsys.readouterr().err


def test_status_does_without_events_where_they_are_forbidden(
    api: ApiServer, cluster: KubernetesCluster, manifest: str
) -> None:
    cluster.submit(manifest)
    api.forbidden = {("get", "events")}
    assert cluster.status(NAME).warnings == []


def test_too_many_crashes_and_refused_data_end_a_job(api: ApiServer, cluster: KubernetesCluster, manifest: str) -> None:
    cluster.submit(manifest)
    for _ in range(40):
        assert api.cluster.end_pod(api.cluster.start_pod(NAME), 75) == "Ignore"
        assert api.cluster.end_pod(api.cluster.start_pod(NAME), 78, disruption="EvictionByEvictionAPI") == "Ignore"
    for _ in range(10):
        api.cluster.end_pod(api.cluster.start_pod(NAME), 137)
    assert cluster.status(NAME).state.startswith("10 failed; waiting: the next pod starts in")
    api.cluster.end_pod(api.cluster.start_pod(NAME), 137)
    assert cluster.status(NAME).state.startswith("failed, BackoffLimitExceeded")


def test_a_pod_that_ended_with_a_code_that_is_no_signal_is_shown(
    api: ApiServer, cluster: KubernetesCluster, manifest: str
) -> None:
    cluster.submit(manifest)
    api.cluster.end_pod(api.cluster.start_pod(NAME), 255)  # what a rebooted node leaves
    assert cluster.status(NAME).pods[0].why == "exit code 255, its node restarted, or the container could not start"


def test_a_pod_that_its_node_turned_away_is_told(api: ApiServer, cluster: KubernetesCluster, manifest: str) -> None:
    cluster.submit(manifest)
    status = api.cluster.objects["pods", api.cluster.start_pod(NAME)]["status"]
    status |= {"phase": "Failed", "reason": "UnexpectedAdmissionError", "message": "no GPU is healthy"}
    status["containerStatuses"] = []
    assert cluster.status(NAME).pods[0].why == "UnexpectedAdmissionError: no GPU is healthy"


@pytest.mark.parametrize(("ends", "seconds"), [(0, 0), (1, 10), (2, 20), (5, 160), (6, 320), (7, 600), (1000, 600)])
def test_kubernetes_waits_longer_after_each_end(ends: int, seconds: int) -> None:
    assert pause_s(ends) == seconds


def test_status_tells_when_the_next_pod_comes(api: ApiServer, cluster: KubernetesCluster, manifest: str) -> None:
    cluster.submit(manifest)
    job = api.cluster.job(NAME)
    now = datetime(2026, 11, 21, 13, 0, tzinfo=UTC)
    job["status"]["startTime"] = (now - timedelta(minutes=30)).isoformat()
    created = [{"reason": "SuccessfulCreate"}] * 4 + [{"reason": "SuccessfulCreate", "count": 1}]
    pod = {"status": {"containerStatuses": [{"state": {"terminated": {"finishedAt": "2026-11-21T12:59:20Z"}}}]}}
    told = replacement_text(job, [pod], created, now)
    assert "the next pod starts in about 120 s" in told  # 160 s after the fifth end, 40 s ago
    assert told.endswith("indextts-launch kubernetes restart am")
    job["status"]["startTime"] = (now - timedelta(days=2)).isoformat()  # events of its first pods are forgotten
    assert "in 120 to 560 s" in replacement_text(job, [pod], created, now)
    assert replacement_text(job, [], [], now) == "waiting, no pod yet"
    evicted = {"status": {"conditions": [{"type": "DisruptionTarget", "lastTransitionTime": "2026-11-21T12:59:55Z"}]}}
    assert "in 5 to 595 s" in replacement_text(job, [evicted], [], now)
    assert "in 0 to" in replacement_text(job, [pod], [], now)
    api.cluster.end_pod(api.cluster.start_pod(NAME), 75, disruption="EvictionByEvictionAPI")
    assert "the next pod starts in" in cluster.status(NAME).state  # its pod is gone, the event tells of it


def test_a_lost_node_is_told_with_what_helps(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.submit(manifest)
    pod = api.cluster.start_pod(NAME)
    assert cluster.status(NAME).advice == []
    api.cluster.lose_node(pod)
    node = api.cluster.objects["pods", pod]["spec"]["nodeName"]
    assert main(["kubernetes", "status", NAME]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"node {node} does not answer" in shown
    assert f"kubectl delete node {node}" in shown
    assert f"kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in shown
    assert "by force does not help" in shown


def test_a_pod_that_should_long_have_ended_is_on_a_lost_node(
    api: ApiServer, cluster: KubernetesCluster, manifest: str
) -> None:
    cluster.submit(manifest)
    metadata = api.cluster.objects["pods", api.cluster.start_pod(NAME)]["metadata"]
    metadata["deletionTimestamp"] = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()  # the end of its grace
    assert cluster.status(NAME).advice == []
    metadata["deletionTimestamp"] = (datetime.now(UTC) - timedelta(minutes=5)).isoformat()
    assert len(cluster.status(NAME).advice) == 1


def test_what_the_cluster_says_moves_no_cursor(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.submit(manifest)
    pod = api.cluster.start_pod(NAME)
    api.cluster.print_line(pod, "step 1\x1b[2J")
    api.cluster.end_pod(pod, 70, message="error: [bold]\x1b[31mforged https://me:hunter2@host/x")
    api.cluster.warn(NAME, "Bad", "\x1b]0;title\x07")
    for command in ("status", "logs"):
        assert main(["kubernetes", command, NAME]) == 0
        shown = capsys.readouterr().out
        assert "\x1b" not in shown
        assert "\x07" not in shown
        assert "hunter2" not in shown
        assert ("[bold]" in shown) == (command == "status")


# ---- restart


def test_a_restart_is_a_new_job_with_the_same_of_everything(
    api: ApiServer, cluster: KubernetesCluster, submit: Callable[..., int], said: Said
) -> None:
    assert submit("--nodes", "2", "--spot", "eks") == 0
    before, config = api.cluster.job(NAME), config_map(api)
    for _ in range(3):
        api.cluster.end_pod(api.cluster.start_pod(NAME, 0), 75)
    cluster.restart(NAME)
    after = api.cluster.job(NAME)
    assert after["metadata"]["uid"] != before["metadata"]["uid"]
    assert list(differences(comparable(before), comparable(after))) == []
    assert after["status"] == {}
    assert config_map(api)["data"] == config["data"]
    assert config_map(api)["metadata"]["ownerReferences"][0]["uid"] == after["metadata"]["uid"]
    assert {kind for kind, _ in api.cluster.objects} >= {"services", "serviceaccounts"}
    assert "started anew" in said[-1]
    assert submit("--nodes", "2", "--spot", "eks") == 0  # the same as the one that was submitted


def test_a_restart_waits_for_the_checkpoint(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, said: Said
) -> None:
    cluster.submit(manifest)
    pod = api.cluster.start_pod(NAME)

    def when_watched(verb: str, resource: str) -> None:
        if said and "is being replaced" in said[-1] and (verb, resource) == ("get", "jobs"):
            api.on_request = lambda _verb, _resource: None
            api.cluster.end_pod(pod, 75)

    api.on_request = when_watched
    cluster.restart(NAME)
    assert "started anew" in said[-1]


def test_a_restart_of_what_is_not_there_is_refused(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kubernetes", "restart", NAME]) == 78
    assert "no job am in namespace lab" in capsys.readouterr().err
    cluster.submit(manifest)
    api.cluster.objects.pop(("configmaps", config_map(api)["metadata"]["name"]))
    assert main(["kubernetes", "restart", NAME]) == 78
    assert "its ConfigMap is gone" in capsys.readouterr().err
    assert ("jobs", NAME) in api.cluster.objects


# ---- logs


def test_logs_follow_a_job_through_its_pods(
    api: ApiServer,
    cluster: KubernetesCluster,
    manifest: str,
    in_background: Callable[[Callable[[], None]], threading.Thread],
) -> None:
    cluster.submit(manifest)
    lines: list[str] = []
    arrived = threading.Semaphore(0)

    def write(line: str) -> None:
        lines.append(line)
        arrived.release()

    def await_lines(number: int) -> None:
        for _ in range(number):
            assert arrived.acquire(timeout=20)

    ends: list[str] = []
    thread = in_background(lambda: ends.append(cluster.logs(NAME, write, follow=True)))
    first = api.cluster.start_pod(NAME)
    api.cluster.print_line(first, "step 1")
    api.cluster.print_line(first, "step 2")
    await_lines(3)
    api.cluster.end_pod(first, 75, disruption="DeletionByTaintManager")  # its log goes with it
    second = api.cluster.start_pod(NAME)
    api.cluster.logs[second].cut_after = 1
    api.cluster.print_line(second, "step 3")
    await_lines(2)
    api.cluster.forget_history()
    api.cluster.print_line(second, "step 4")
    await_lines(1)
    api.cluster.end_pod(second, 0)
    thread.join(20)
    assert lines == [f"── {first}", "step 1", "step 2", f"── {second}", "step 3", "step 4", "── job am: complete"]
    assert ends == ["complete"]


def test_logs_without_follow_end_at_once(
    api: ApiServer, cluster: KubernetesCluster, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.submit(manifest)
    assert main(["kubernetes", "logs", NAME]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == []
    for text in ("one", "two"):
        pod = api.cluster.start_pod(NAME)
        api.cluster.print_line(pod, text)
        if text == "one":
            api.cluster.end_pod(pod, 70)
    waiting = api.cluster.start_pod(NAME)
    api.cluster.wait_for_container(waiting, "ContainerCreating", "")
    assert main(["kubernetes", "logs", NAME]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line for line in shown if not line.startswith("──")] == ["one", "two"]


def test_logs_of_a_job_that_is_deleted_end(
    api: ApiServer,
    cluster: KubernetesCluster,
    manifest: str,
    in_background: Callable[[Callable[[], None]], threading.Thread],
) -> None:
    cluster.submit(manifest)
    watched = threading.Event()
    api.on_request = lambda _verb, _resource: watched.set() if api.requests[-1][2].get("watch") else None
    ends: list[str] = []
    thread = in_background(lambda: ends.append(cluster.logs(NAME, lambda _line: None, follow=True)))
    assert watched.wait(20)
    api.cluster.delete("jobs", NAME, {"propagationPolicy": "Foreground"})
    thread.join(20)


# ---- queues, names, waiting


def test_what_kueue_writes_is_no_difference(
    api: ApiServer, submit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    """It admits a suspended Job, with the node selector of a flavour, and suspends it again for one of more weight."""
    queued = ("--queue", "team-a", "--priority-class", "low", "--env", "HF_HOME=/models", "--pull-secret", "registry")
    assert submit(*queued) == 0
    job = api.cluster.job(NAME)
    assert job["spec"]["suspend"] is True
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    pod = job["spec"]["template"]["spec"]
    assert (pod["priorityClassName"], pod["imagePullSecrets"]) == ("low", [{"name": "registry"}])
    assert {"name": "HF_HOME", "value": "/models"} in pod["containers"][0]["env"]
    capsys.readouterr()
    assert main(["kubernetes", "status"]) == 0
    assert "suspended: it waits in the queue team-a" in capsys.readouterr().out
    admitted = {"template": {"spec": {"nodeSelector": {"cloud.google.com/gke-spot": "true"}}}, "suspend": False}
    api.cluster.patch("jobs", NAME, {"spec": admitted})
    assert submit(*queued) == 0
    assert "nothing to do" in capsys.readouterr().out
    api.cluster.patch("jobs", NAME, {"spec": {"suspend": True}})
    assert submit(*queued) == 0
    assert "nothing to do; it is suspended: it waits in the queue team-a" in " ".join(capsys.readouterr().out.split())
    assert submit(*queued[2:]) == 78
    assert submit("--queue", "team-b", *queued[2:]) == 78
    assert main(["kubernetes", "restart", NAME]) == 0
    assert api.cluster.job(NAME)["spec"]["suspend"] is True
    assert submit(*queued) == 0


def test_without_a_name_the_only_job_is_meant(
    api: ApiServer, submit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["kubernetes", "cancel"]) == 78
    assert "which job? In namespace lab there is none" in capsys.readouterr().err
    assert submit() == 0
    assert main(["kubernetes", "status"]) == 0
    assert submit("--name", "other") == 0
    capsys.readouterr()
    for verb in ("status", "cancel", "restart", "logs", "wait"):
        assert main(["kubernetes", verb]) == 78
        assert "there are am, other. Give its name." in capsys.readouterr().err
    assert {name for kind, name in api.cluster.objects if kind == "jobs"} == {"am", "other"}


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (78, 70)])
def test_waiting_for_a_job_ends_with_it(
    api: ApiServer,
    cluster: KubernetesCluster,
    manifest: str,
    in_background: Callable[[Callable[[], None]], threading.Thread],
    code: int,
    expected: int,
) -> None:
    cluster.submit(manifest)
    watched = threading.Event()
    api.on_request = lambda _verb, _resource: watched.set() if api.requests[-1][2].get("watch") else None
    codes: list[int] = []
    thread = in_background(lambda: codes.append(main(["kubernetes", "wait", NAME])))
    assert watched.wait(20)
    api.cluster.end_pod(api.cluster.start_pod(NAME), code)
    thread.join(20)
    assert codes == [expected]
    assert main(["kubernetes", "logs", "--follow", NAME]) == expected


# ---- cancel


def test_cancel_waits_for_the_checkpoint_and_leaves_nothing(
    api: ApiServer,
    cluster: KubernetesCluster,
    manifest: str,
    said: Said,
    in_background: Callable[[Callable[[], None]], threading.Thread],
) -> None:
    cluster.submit(manifest)
    pod = api.cluster.start_pod(NAME)
    watched = threading.Event()
    api.on_request = lambda _verb, _resource: watched.set() if api.requests[-1][2].get("watch") else None
    thread = in_background(lambda: cluster.cancel(NAME))
    assert watched.wait(20)
    # While the trainer saves it still has what it needs.
    assert ("serviceaccounts", NAME) in api.cluster.objects
    api.cluster.end_pod(pod, 75)
    thread.join(20)
    assert "60 s to commit a checkpoint" in said[-2]
    assert "is gone" in said[-1]
    assert left(api) == set()
    assert [query for verb, path, query in api.requests if (verb, path) == ("delete", f"jobs/{NAME}")]


def test_cancel_leaves_what_is_not_its_own(api: ApiServer, cluster: KubernetesCluster, manifest: str) -> None:
    account: dict[str, Any] = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": NAME}}
    api.cluster.create("serviceaccounts", account, {})
    cluster.submit(manifest)
    cluster.cancel(NAME)
    assert set(api.cluster.objects) == {("serviceaccounts", NAME)}


def test_cancel_removes_what_the_cluster_leaves_of_a_job_that_it_removed(
    api: ApiServer, cluster: KubernetesCluster, submit: Callable[..., int], said: Said
) -> None:
    assert submit("--nodes", "2") == 0
    api.cluster.delete("jobs", NAME, {"propagationPolicy": "Foreground"})  # as its ttlSecondsAfterFinished does
    assert left(api) == {("serviceaccounts", NAME), ("services", NAME)}
    cluster.cancel(NAME)
    assert left(api) == set()
    assert "was removed by the cluster" in said[-1]
    with pytest.raises(ConfigError, match=f"no job {NAME} in namespace lab"):
        cluster.cancel(NAME)


def test_an_account_that_another_job_uses_stays(
    api: ApiServer, cluster: KubernetesCluster, submit: Callable[..., int], said: Said
) -> None:
    assert submit() == 0
    assert submit("--name", "de", "--service-account", NAME) == 0
    api.cluster.delete("jobs", NAME, {"propagationPolicy": "Foreground"})
    with pytest.raises(ConfigError, match=f"no job {NAME}"):
        cluster.cancel(NAME)
    assert f"service account {NAME} stays: job de uses it" in said.text
    assert ("serviceaccounts", NAME) in left(api)
    cluster.cancel("de")
    assert ("serviceaccounts", NAME) in left(api)  # de has not created it
    with contextlib.suppress(ConfigError):
        cluster.cancel(NAME)
    assert left(api) == set()


def test_several_nodes_are_submitted_followed_and_cancelled_as_one(
    api: ApiServer, cluster: KubernetesCluster, submit: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit("--nodes", "2", "--gpus", "8") == 0
    assert submit("--nodes", "2", "--gpus", "8") == 0
    assert "nothing to do" in capsys.readouterr().out
    assert submit("--nodes", "3", "--gpus", "8") == 78
    assert "completions: 2 runs, 3 asked for" in capsys.readouterr().err
    assert ("services", NAME) in api.cluster.objects
    silent, speaking = api.cluster.start_pod(NAME, 1), api.cluster.start_pod(NAME, 0)
    api.cluster.print_line(speaking, "step 1")
    lines: list[str] = []
    api.cluster.end_pod(speaking, 0)  # the stand-in's Job is complete then
    cluster.logs(NAME, lines.append, follow=True)
    assert lines == [f"── {speaking}", "step 1", "── job am: complete"]
    api.cluster.end_pod(silent, 0)
    cluster.cancel(NAME)
    assert left(api) == set()


# ---- kubectl


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is demanded by test_manifests.py")
def test_kubectl_and_the_launcher_mean_the_same(
    api: ApiServer, cluster: KubernetesCluster, said: Said, capsys: pytest.CaptureFixture[str]
) -> None:
    apply = ["kubectl", "apply", "--validate=false", "-k", str(FOLDER / "base")]
    done = subprocess.run(apply, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert done.stdout.count(" created") == 3
    again = subprocess.run(apply, capture_output=True, text=True, check=True)
    assert again.stdout.count(" unchanged") == 3
    assert main(["kubernetes", "submit", "--dry-run"]) == 0
    cluster.submit(capsys.readouterr().out)
    assert "the same as this one: nothing to do" in said[-1]
    shown = subprocess.run(["kubectl", "get", "job", "indextts"], capture_output=True, text=True, check=True)
    assert "indextts" in shown.stdout


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is demanded by test_manifests.py")
def test_a_configuration_that_is_edited_and_applied_again_is_the_one_that_trains(
    api: ApiServer, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(FOLDER / "base", base)

    def kubectl(*arguments: str) -> None:
        subprocess.run(["kubectl", *arguments], capture_output=True, text=True, check=True)

    kubectl("apply", "--validate=false", "-k", str(base))
    kubectl("delete", "job", "indextts", "--wait=false")
    path = base / "run.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("amharic", "second"), encoding="utf-8")
    kubectl("apply", "--validate=false", "-k", str(base))
    mounted = api.cluster.objects["configmaps", config_map_of(api.cluster.job("indextts"))]
    assert "s3://my-bucket/runs/second" in mounted["data"]["run.yaml"]
