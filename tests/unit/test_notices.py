"""Notices of the clouds: services on loopback that speak their protocols, and nonsense."""

import json
import logging
import math
import os
import signal
import socketserver
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from indextts_job.preemption import clouds
from indextts_job.preemption.clouds import Aws, Azure, Cloud, Google, MetadataError, SpotNotice, known_clouds
from indextts_job.preemption.notices import watch
from indextts_job.preemption.signals import StopSignals
from tests.support.metadata_server import AwsMetadata, AzureMetadata, GoogleMetadata, MetadataServer, serving

NOW = datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)


def now() -> datetime:
    return NOW


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clouds, "ANSWER_S", 0.5)
    monkeypatch.setattr(Azure, "first_answer_s", 0.5)


class Ended(Exception):  # noqa: N818
    """A test's clock has run out."""


class Pauses:
    """Counts the pauses of a watch, does something in each, and ends it after the last."""

    def __init__(self, *actions: object) -> None:
        self._actions = list(actions)
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        if not self._actions:
            raise Ended
        action = self._actions.pop(0)
        if callable(action):
            action()


# ---- AWS


@pytest.fixture
def aws() -> AwsMetadata:
    return AwsMetadata()


@pytest.fixture
def aws_server(aws: AwsMetadata) -> Iterator[MetadataServer]:
    with serving(aws) as server:
        yield server


def test_aws_gives_two_minutes(aws: AwsMetadata, aws_server: MetadataServer) -> None:
    cloud = Aws(aws_server.url, now)
    assert cloud.present()
    assert cloud.ask() is None
    aws.documents["events/recommendations/rebalance"] = '{"noticeTime": "2026-11-21T11:59:00Z"}'
    risk = cloud.ask()
    assert risk is not None
    assert risk.seconds_left is None
    aws.documents["spot/instance-action"] = '{"action": "terminate", "time": "2026-11-21T12:01:50Z"}'
    assert cloud.ask() == SpotNotice("spot interruption by AWS (terminate at 12:01:50 UTC)", 110.0)


@pytest.mark.parametrize(("time_given", "left"), [("2026-11-21T13:00:00Z", 120.0), ("2026-11-21T11:00:00Z", 0.0)])
def test_a_clock_that_goes_wrong_cannot_promise_more_than_aws(
    aws: AwsMetadata, aws_server: MetadataServer, time_given: str, left: float
) -> None:
    cloud = Aws(aws_server.url, now)
    assert cloud.present()
    aws.documents["spot/instance-action"] = json.dumps({"action": "stop", "time": time_given})
    notice = cloud.ask()
    assert notice is not None
    assert notice.seconds_left == left


def test_an_expired_token_is_renewed(aws: AwsMetadata, aws_server: MetadataServer) -> None:
    cloud = Aws(aws_server.url, now)
    assert cloud.present()
    aws.tokens.pop(0)
    aws.documents["spot/instance-action"] = '{"action": "terminate", "time": "2026-11-21T12:02:00Z"}'
    notice = cloud.ask()
    assert notice is not None
    assert notice.seconds_left == 120.0


@pytest.mark.parametrize("document", ["", "[]", "<html>", '{"time": "soon"}', '{"action": "terminate"}'])
def test_nonsense_of_aws_is_no_notice(aws: AwsMetadata, aws_server: MetadataServer, document: str) -> None:
    cloud = Aws(aws_server.url, now)
    assert cloud.present()
    aws.documents["spot/instance-action"] = document
    if document:
        with pytest.raises(MetadataError):
            cloud.ask()
    else:
        assert cloud.ask() is None


# ---- Google


def test_google_gives_thirty_seconds() -> None:
    google = GoogleMetadata()
    with serving(google, Metadata_Flavor="Google") as server:
        cloud = Google(server.url)
        assert cloud.present()
        assert cloud.ask() is None
        google.preempted = "TRUE\n"
        assert cloud.ask() == SpotNotice("preemption by Google Cloud", 30.0)
        google.preempted = "PERHAPS"
        with pytest.raises(MetadataError, match="PERHAPS"):
            cloud.ask()


def test_whoever_answers_without_the_flavour_is_not_google() -> None:
    with serving(GoogleMetadata()) as server:
        assert not Google(server.url).present()


# ---- Azure


@pytest.mark.parametrize(
    ("event", "left"),
    [
        ({"EventType": "Preempt", "NotBefore": "Sat, 21 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"EventType": "Redeploy", "NotBefore": "2026-11-21T12:10:00Z"}, 600.0),
        ({"EventType": "Preempt", "NotBefore": "", "EventStatus": "Started"}, 0.0),
        ({"EventType": "Freeze", "NotBefore": "Sat, 21 Nov 2026 12:00:30 GMT"}, None),
        ({"EventType": "Preempt", "NotBefore": "", "Resources": ["gpu_4"]}, None),
        ({"EventType": "Preempt", "NotBefore": "", "Resources": None}, None),
    ],
)
def test_azure_announces_events_of_this_machine(event: dict[str, object], left: float | None) -> None:
    azure = AzureMetadata()
    with serving(azure) as server:
        cloud = Azure(server.url, now)
        assert cloud.present()
        assert cloud.ask() is None
        azure.events = json.dumps({"Events": [{"Resources": ["gpu_1", "gpu_3"], **event}]})
        notice = cloud.ask()
        assert (notice.seconds_left if notice else None) == left


@pytest.mark.parametrize("events", ["", "{", "[1]", '{"Events": {"a": 1}}', '{"Events": ["x"]}'])
def test_nonsense_of_azure_is_no_notice(events: str) -> None:
    azure = AzureMetadata()
    with serving(azure) as server:
        cloud = Azure(server.url, now)
        assert cloud.present()
        azure.events = events
        if events:
            with pytest.raises(MetadataError):
                cloud.ask()
        else:
            assert cloud.ask() is None


# ---- whichever it is


def test_no_cloud_mistakes_another_for_itself() -> None:
    def found(url: str) -> list[str]:
        candidates: list[Cloud] = [Aws(url, now), Google(url), Azure(url, now)]
        return [type(cloud).__name__ for cloud in candidates if cloud.present()]

    with serving(AwsMetadata()) as server:
        assert found(server.url) == ["Aws"]
    with serving(GoogleMetadata(), Metadata_Flavor="Google") as server:
        assert found(server.url) == ["Google"]
    with serving(AzureMetadata()) as server:
        assert found(server.url) == ["Azure"]
    assert found(server.url) == []  # nobody is there


def test_the_clouds_own_variables_lead_to_their_services() -> None:
    with serving(AwsMetadata()) as aws, serving(GoogleMetadata(), Metadata_Flavor="Google") as google:
        environment = {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{aws.url}/", "GCE_METADATA_HOST": google.address}
        first, second, _ = known_clouds(environment)
        assert first.present()
        assert second.present()
        assert isinstance(known_clouds({**environment, "AWS_EC2_METADATA_DISABLED": "true"})[0], Google)


def test_on_no_cloud_nothing_is_asked_again() -> None:
    with serving(lambda _method, _path, _headers: (404, "")) as server:
        stop, pauses = StopSignals(), Pauses()
        watch([Aws(server.url, now), Google(server.url), Azure(server.url, now)], stop, pauses)
        assert pauses.seconds == []
        assert stop() is None


def test_a_service_that_hangs_is_asked_again(
    aws: AwsMetadata, aws_server: MetadataServer, caplog: pytest.LogCaptureFixture
) -> None:
    def recover() -> None:
        aws_server.hangs.clear()
        aws.documents["spot/instance-action"] = '{"action": "terminate", "time": "2026-11-21T12:02:00Z"}'

    stop, pauses = StopSignals(), Pauses(aws_server.hangs.set, None, recover)
    with caplog.at_level(logging.WARNING):
        watch([Aws(aws_server.url, now)], stop, pauses)
    request = stop()
    assert request is not None
    assert request.reason.startswith("spot interruption by AWS")
    complaints = [record for record in caplog.records if record.name == "indextts_job.preemption.notices"]
    assert len(complaints) == 1


def test_an_end_far_away_is_not_acted_upon_yet() -> None:
    azure = AzureMetadata()
    instants = iter([0, 400, 500])

    def announce() -> None:
        event = {"EventType": "Reboot", "Resources": ["gpu_3"], "NotBefore": "2026-11-21T12:10:00Z"}
        azure.events = json.dumps({"Events": [event]})

    with serving(azure) as server:
        stop, pauses = StopSignals(), Pauses(announce, None, None)
        watch([Azure(server.url, lambda: datetime.fromtimestamp(NOW.timestamp() + next(instants), UTC))], stop, pauses)
    request = stop()
    assert request is not None
    assert request.reason == "Reboot by Azure"
    assert request.deadline_at_s - request.requested_at_s == pytest.approx(100.0)
    assert len(pauses.seconds) >= 2


def test_a_recommendation_raises_the_risk_only(aws: AwsMetadata, aws_server: MetadataServer) -> None:
    aws.documents["events/recommendations/rebalance"] = "{}"
    stop = StopSignals()
    with pytest.raises(Ended):
        watch([Aws(aws_server.url, now)], stop, Pauses(None))
    assert "rebalance" in stop.risk
    assert stop() is None


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGUSR2)
    found = StopSignals()
    found.install()
    yield found
    for number, handler in zip((signal.SIGTERM, signal.SIGINT, signal.SIGUSR2), before, strict=True):
        signal.signal(number, handler)


def test_the_earliest_deadline_counts_whoever_sets_it(signals: StopSignals) -> None:
    signals.grace_s = 60.0
    begun_s = time.monotonic()
    signals.notice("notice", 120.0)
    first = signals()
    assert first is not None
    assert first.deadline_at_s - begun_s == pytest.approx(120.0, abs=5)
    os.kill(os.getpid(), signal.SIGTERM)
    both = signals()
    assert both is not None
    assert both.reason == "notice"
    assert both.deadline_at_s - begun_s == pytest.approx(60.0, abs=5)


def test_a_notice_ends_the_patience_of_ctrl_c(signals: StopSignals) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    request = signals()
    assert request is not None
    assert math.isinf(request.deadline_at_s)
    thread = threading.Thread(target=lambda: signals.notice("notice", 30.0))
    thread.start()
    thread.join()
    request = signals()
    assert request is not None
    assert request.reason == "SIGINT"
    assert request.deadline_at_s < time.monotonic() + 31


class Garbled(socketserver.StreamRequestHandler):
    """Answers what no HTTP client can read, then closes the connection."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(b"\x00\xffnot http at all\r\n\r\n")


def test_a_garbled_answer_is_no_end_of_the_watch() -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), Garbled) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            cloud = Google(f"http://127.0.0.1:{server.server_address[1]}")
            assert not cloud.present()
            with pytest.raises(MetadataError):
                cloud.ask()
        finally:
            server.shutdown()


class Moody:
    """A cloud whose answers break the client in unexpected ways, until a notice comes."""

    interval_s = 1.0

    def __init__(self, *answers: object) -> None:
        self._answers = list(answers)

    def present(self) -> bool:
        return True

    def ask(self) -> SpotNotice | None:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert answer is None or isinstance(answer, SpotNotice)
        return answer


def test_whatever_an_answer_breaks_the_later_notice_is_heard_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = [RecursionError("deep"), KeyError("x"), OverflowError("far"), ValueError("odd")]
    signals = StopSignals()
    watch([Moody(*broken, SpotNotice("preemption", 30.0))], signals, Pauses(*[None] * 10))
    assert signals() is not None
    assert len([record for record in caplog.records if "cannot be read" in record.message]) == 1
