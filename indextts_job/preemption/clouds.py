"""Notices of the end of this machine, from the clouds' metadata services.

- AWS, instance metadata version 2: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
- Google: https://cloud.google.com/compute/docs/instances/spot
- Azure, scheduled events: https://learn.microsoft.com/azure/virtual-machines/linux/scheduled-events

An answer that is not understood raises `MetadataError`; the caller asks again.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any, Protocol

LINK_LOCAL = "http://169.254.169.254"
ANSWER_S = 2.0
"""A metadata service runs on the same host and answers in milliseconds. Outside a cloud there is no answer at all."""
MOST_BYTES = 64 * 1024
Clock = Callable[[], datetime]


class MetadataError(Exception):
    """There was no answer, or one that cannot be understood."""


@dataclass(frozen=True, slots=True)
class SpotNotice:
    """The cloud will take the machine away, or the risk that it does has risen."""

    reason: str
    seconds_left: float | None
    """Time to the end of the machine; None when only the risk has risen."""


class Cloud(Protocol):
    """One cloud's metadata service."""

    interval_s: float
    """Pause between two requests."""

    def present(self) -> bool:
        """Whether this machine is on that cloud."""

    def ask(self) -> SpotNotice | None:
        """The notice for this machine; None if there is none.

        Raises:
            MetadataError: There was no answer, or one that cannot be understood.
        """


def known_clouds(environment: Mapping[str, str], now: Clock = lambda: datetime.now(UTC)) -> list[Cloud]:
    """All clouds, at the addresses that the environment variables of the clouds' own tools give.

    Args:
        environment: Environment variables of the process.
        now: The wall clock, for the instants in notices.
    """
    aws = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", LINK_LOCAL).rstrip("/")
    google = environment.get("GCE_METADATA_HOST", "metadata.google.internal")
    found: list[Cloud] = [Google(f"http://{google}"), Azure(LINK_LOCAL, now)]
    disabled = environment.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
    return found if disabled else [Aws(aws, now), *found]


class Aws:
    """AWS: interruptions of spot instances, and recommendations to rebalance."""

    interval_s = 5.0

    def __init__(self, endpoint: str, now: Clock) -> None:
        self._endpoint = endpoint
        self._now = now
        self._token = ""

    def present(self) -> bool:
        """Whether the service gives a token. Inside a container this needs a hop limit of 2 on the instance."""
        try:
            self._renew_token()
        except MetadataError:
            return False
        return bool(self._token)

    def ask(self) -> SpotNotice | None:
        """The interruption (`spot/instance-action`), or else the recommendation."""
        action = self._get("spot/instance-action")
        if action:
            document = _object(action)
            at = _instant(str(document.get("time", "")))
            # AWS gives two minutes. A clock of this machine that is behind must not promise more.
            left_s = min(max(0.0, (at - self._now()).total_seconds()), 120.0)
            return SpotNotice(
                f"spot interruption by AWS ({document.get('action', 'terminate')} at {at:%T} UTC)", left_s
            )
        if self._get("events/recommendations/rebalance"):
            return SpotNotice("AWS recommends to leave this instance (rebalance recommendation)", None)
        return None

    def _get(self, path: str) -> str:
        """The document at a path; empty when there is none."""
        for _ in range(2):  # a second time with a new token, if the first one has expired
            status, body, _ = _fetch(
                f"{self._endpoint}/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token}
            )
            if status != 401:
                break
            self._renew_token()
        return _body_or_nothing(status, body)

    def _renew_token(self) -> None:
        lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}  # six hours, the longest that AWS allows
        status, body, _ = _fetch(f"{self._endpoint}/latest/api/token", lifetime, method="PUT")
        self._token = body.strip() if status == 200 else ""


class Google:
    """Google Cloud: preemption of spot and preemptible machines."""

    interval_s = 1.0
    notice_s = 30.0
    """Time from the notice to the end. GKE leaves a pod less, and sends SIGTERM for that."""

    def __init__(self, endpoint: str) -> None:
        self._url = f"{endpoint}/computeMetadata/v1/instance/preempted"

    def present(self) -> bool:
        """Whether the service answers with the header that only Google's has."""
        try:
            status, _, headers = self._fetch()
        except MetadataError:
            return False
        return status == 200 and headers.get("Metadata-Flavor") == "Google"

    def ask(self) -> SpotNotice | None:
        """The preemption, if `instance/preempted` is TRUE."""
        status, body, _ = self._fetch()
        answer = _body_or_nothing(status, body).strip()
        if answer == "TRUE":
            return SpotNotice("preemption by Google Cloud", self.notice_s)
        if answer != "FALSE":
            raise MetadataError(f"{self._url}: expected TRUE or FALSE, found {answer[:50]!r}")
        return None

    def _fetch(self) -> tuple[int, str, Message]:
        return _fetch(self._url, {"Metadata-Flavor": "Google"})


class Azure:
    """Azure: scheduled events that end this machine."""

    interval_s = 1.0
    ending = ("Preempt", "Terminate", "Reboot", "Redeploy")
    """Types of events that end the process. A Freeze only pauses the machine for some seconds."""
    first_answer_s = 130.0
    """The first request of a machine switches its events on, which takes up to two minutes."""

    def __init__(self, endpoint: str, now: Clock) -> None:
        self._endpoint = endpoint
        self._now = now
        self._name = ""
        self._answer_s: float | None = self.first_answer_s

    def present(self) -> bool:
        """Whether the service gives the name of this machine."""
        path = "instance/compute/name?api-version=2021-02-01&format=text"
        try:
            status, body, _ = _fetch(f"{self._endpoint}/metadata/{path}", {"Metadata": "true"})
        except MetadataError:
            return False
        self._name = body.strip() if status == 200 else ""
        return bool(self._name)

    def ask(self) -> SpotNotice | None:
        """The first event that ends this machine."""
        mine = filter(self._ends_this_machine, self._events())
        notices = [SpotNotice(f"{event['EventType']} by Azure", self._seconds_left(event)) for event in mine]
        return min(notices, key=lambda notice: notice.seconds_left or 0.0, default=None)

    def _events(self) -> list[dict[str, Any]]:
        url = f"{self._endpoint}/metadata/scheduledevents?api-version=2020-07-01"
        status, body, _ = _fetch(url, {"Metadata": "true"}, timeout_s=self._answer_s)
        self._answer_s = None
        events = _object(_body_or_nothing(status, body) or "{}").get("Events") or []
        if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
            raise MetadataError(f"{url}: Events is no list of events")
        return events

    def _ends_this_machine(self, event: Mapping[str, Any]) -> bool:
        # The list also has the events of other machines in the same scale set or availability set.
        return event.get("EventType") in self.ending and self._name in (event.get("Resources") or [])

    def _seconds_left(self, event: Mapping[str, object]) -> float:
        when = str(event.get("NotBefore") or "")
        if not when:  # the event has started
            return 0.0
        return max(0.0, (_instant(when) - self._now()).total_seconds())


def _fetch(
    url: str, headers: Mapping[str, str], *, method: str = "GET", timeout_s: float | None = None
) -> tuple[int, str, Message]:
    """Status, text and headers of an answer, also of one that is an error."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310  # http, by construction
    # Without the proxy of the environment: it would answer for its own machine, or refuse a link-local address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_s or ANSWER_S) as response:
            return response.status, response.read(MOST_BYTES).decode(errors="replace"), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, "", error.headers
    except (OSError, ValueError, HTTPException) as error:
        raise MetadataError(f"{url}: {type(error).__name__}: {error}") from error


def _body_or_nothing(status: int, body: str) -> str:
    if status == 404:
        return ""
    if status != 200:
        raise MetadataError(f"the metadata service answers {status}")
    return body


def _object(text: str) -> Mapping[str, object]:
    try:
        document = json.loads(text)
    except ValueError as error:
        raise MetadataError(f"expected JSON, found {text[:50]!r}") from error
    if not isinstance(document, dict):
        raise MetadataError(f"expected a JSON object, found {text[:50]!r}")
    return document


def _instant(text: str) -> datetime:
    """An instant in ISO 8601 (AWS) or RFC 1123 (Azure); without a time zone it is UTC."""
    try:
        found = parsedate_to_datetime(text) if "," in text else datetime.fromisoformat(text)
    except ValueError as error:
        raise MetadataError(f"expected an instant, found {text[:50]!r}") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)
