"""Failures of clients by their class, and patience that ends when it says."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import aiohttp
import botocore.exceptions
import pytest
from multidict import CIMultiDict, CIMultiDictProxy
from s3fs.errors import translate_boto_error
from yarl import URL

from indextts_job.errors import AccessRefusedError, ConfigError, IndexTTSJobError, UnavailableError
from indextts_job.storage import patience
from indextts_job.storage.errors import patiently
from indextts_job.storage.remote_files import CALL_TIMEOUT_S, LEAST_TIMEOUT_S, RemoteFileSystem


def raising(error: BaseException) -> Callable[[], None]:
    def operation() -> None:
        raise error

    return operation


def failure(error: BaseException, what: str = "reading s3://bucket/a") -> IndexTTSJobError:
    with pytest.raises(IndexTTSJobError) as caught:
        patiently(what, raising(error), 0.0)
    return caught.value


def s3_error(code: str, date: str = "") -> BaseException:
    answer = {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPHeaders": {"date": date}}}
    error: BaseException = translate_boto_error(botocore.exceptions.ClientError(answer, "HeadObject"))
    return error


def date_in(hours: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(hours=hours), usegmt=True)


def test_a_clock_that_is_off_is_named_and_another_node_may_do() -> None:
    error = failure(s3_error("RequestTimeTooSkewed"))
    assert type(error) is UnavailableError
    assert "the clock of this machine is off" in str(error)
    # A HEAD request has no body, so its code is only 403: the server's own date tells.
    error = failure(s3_error("403", date_in(hours=1)))
    assert type(error) is UnavailableError
    assert re.search(r"off by (3599|36\d\d) s behind", str(error))


@pytest.mark.parametrize("date", ["", "yesterday", "now"])
def test_refused_credentials_stay_refused(date: str) -> None:
    date = date_in(0) if date == "now" else date
    assert type(failure(s3_error("403", date))) is AccessRefusedError
    assert type(failure(s3_error("AccessDenied", date))) is AccessRefusedError


def web_error(status: int) -> aiohttp.ClientResponseError:
    request = aiohttp.RequestInfo(
        URL("https://h/a?sig=secretsignature"), "GET", CIMultiDictProxy(CIMultiDict()), URL("https://h/a")
    )
    return aiohttp.ClientResponseError(request, (), status=status, message="no")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (web_error(403), AccessRefusedError),
        (web_error(401), AccessRefusedError),
        (web_error(500), UnavailableError),
        (aiohttp.ClientPayloadError("cut off"), UnavailableError),
        (aiohttp.InvalidURL("https://h/a?sig=secretsignature"), UnavailableError),
        (OSError(36, "File name too long"), ConfigError),
        (ValueError("Invalid endpoint: nonsense"), UnavailableError),
    ],
)
def test_failures_of_web_servers_and_impossible_names_have_their_class(error: Exception, kind: type) -> None:
    found = failure(error, "reading https://user:secretsignature@h/a?sig=secretsignature")
    assert type(found) is kind
    assert "secretsignature" not in str(found)


class Clock:
    """Time that passes only when somebody waits or works."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.calls_at_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def slow_failure(self, seconds: float) -> Callable[[], None]:
        def operation() -> None:
            self.calls_at_s.append(self.now_s)
            self.now_s += seconds
            raise OSError(5, "slow")

        return operation


@pytest.mark.parametrize("call_s", [0.0, 1.0, 50.0, 500.0])
def test_patience_is_a_deadline_over_tries_and_pauses(call_s: float) -> None:
    clock = Clock()
    with pytest.raises(UnavailableError):
        patiently("reading a", clock.slow_failure(call_s), 120.0, sleep=clock.sleep, clock=clock)
    assert clock.calls_at_s[-1] <= 1120.0 + 1e-6
    assert clock.now_s <= 1120.0 + call_s + 1e-6
    assert len(clock.calls_at_s) > 1 or call_s > 120.0


class RecordingFileSystem:
    """Stands for an asynchronous fsspec file system."""

    async_impl = True

    def __init__(self) -> None:
        self.timeouts: list[float] = []

    def exists(self, _path: str, timeout: float) -> bool:
        self.timeouts.append(timeout)
        return True


def test_a_call_is_bounded_by_the_time_that_is_left_but_always_has_some_seconds() -> None:
    recording: Any = RecordingFileSystem()
    filesystem = RemoteFileSystem(recording)
    filesystem.exists("a")
    assert recording.timeouts == [CALL_TIMEOUT_S]
    for limit_s, least_s, most_s in ((30.0, 25.0, 30.0), (0.0, LEAST_TIMEOUT_S, LEAST_TIMEOUT_S), (1e6, 75.0, 75.0)):
        patiently("looking", lambda: filesystem.exists("a"), limit_s)
        assert least_s <= recording.timeouts[-1] <= most_s
    assert patience.seconds_left() == float("inf")
