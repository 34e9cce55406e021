"""Failures of file systems as errors a user can act on, told apart by class, and patience with those that may pass."""

import contextlib
import email.utils
import errno
import logging
import random
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from indextts_job.errors import AccessRefusedError, ConfigError, IndexTTSJobError, StorageFullError, UnavailableError
from indextts_job.redaction import redacted
from indextts_job.storage import patience
from indextts_job.storage.patience import within_patience
from indextts_job.waiting import pause

logger = logging.getLogger(__name__)
T = TypeVar("T")

_NO_SUCH_PLACE = (errno.ENAMETOOLONG, errno.ELOOP)
"""Paths that no file system here can have."""
_CLOCK_CODES = ("RequestTimeTooSkewed", "RequestInTheFuture")
"""Of S3: the signature carries a time that is too far from the server's."""
CLOCK_TOLERANCE_S = 300.0
"""The strictest store refuses signatures that are further off."""


@contextlib.contextmanager
def translated(what: str, *, writing: bool = False) -> Iterator[None]:
    """Translate failures; "exists", and "not found" of a read, pass through. Messages lose secrets of URLs.

    Args:
        what: The operation and its path or URL, to begin the message.
        writing: Whether "not found" means that the place to write to does not exist.

    Raises:
        AccessRefusedError: Permission or credentials.
        ConfigError: A place that cannot exist.
        StorageFullError: No space.
        UnavailableError: Everything else.
    """
    try:
        yield
    except FileExistsError:
        raise
    except FileNotFoundError as error:
        if not writing:
            raise
        raise _translation(redacted(what), error) from error
    except OSError as error:
        raise _translation(redacted(what), error) from error


def _translation(what: str, error: OSError) -> Exception:
    if isinstance(error, IsADirectoryError):
        return FileNotFoundError(f"{what}: a folder, expected a file")
    if isinstance(error, PermissionError):
        return _refused(what, error)
    if advice := _advice_for_place(error):
        return ConfigError(f"{what} failed ({_text(error)}). {advice}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(
            f"{what} failed: no space is left ({_text(error)}). Free some; committed checkpoints are intact."
        )
    return UnavailableError(f"{what} failed ({_text(error)}). Check the storage; committed checkpoints are intact.")


def _advice_for_place(error: OSError) -> str:
    """What to do about a place that is none, where trying again does not help; empty for other failures."""
    if isinstance(error, FileNotFoundError):
        return "The place does not exist; choose another one."
    if isinstance(error, NotADirectoryError):
        return "The path runs through a file; choose another one."
    return "No such path can exist; give another one." if error.errno in _NO_SUCH_PLACE else ""


def _text(error: BaseException) -> str:
    return redacted(str(error)) or type(error).__name__


def _refused(what: str, error: PermissionError) -> IndexTTSJobError:
    """A refusal: for good, or because this machine's clock is wrong, which another node would not have."""
    answer: Mapping[str, Any] = getattr(error.__cause__, "response", None) or {}
    offset_s = _clock_offset_s(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
    if answer.get("Error", {}).get("Code") in _CLOCK_CODES or abs(offset_s) > CLOCK_TOLERANCE_S:
        by = f" by {abs(offset_s):.0f} s {'ahead' if offset_s > 0 else 'behind'}" if offset_s else ""
        return UnavailableError(
            f"{what} was refused because the clock of this machine is off{by} ({_text(error)}). Set the clock (NTP), "
            "or start on another node; nothing is lost."
        )
    return AccessRefusedError(f"{what} was refused ({_text(error)}). Check credentials and permissions.")


def _clock_offset_s(headers: Mapping[str, str]) -> float:
    """Seconds by which this machine's clock is ahead of the server's; 0 where its answer does not tell."""
    try:
        return time.time() - email.utils.parsedate_to_datetime(headers["date"]).timestamp()
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


@contextlib.contextmanager
def _client_errors(what: str) -> Iterator[None]:
    """Failures that clients of stores and web servers report outside the OSError family."""
    from aiohttp import ClientError, ClientResponseError  # noqa: PLC0415  # only remote operations pay for these
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        TokenRetrievalError,
    )

    try:
        yield
    except (NoCredentialsError, CredentialRetrievalError, TokenRetrievalError) as error:
        raise AccessRefusedError(
            f"{redacted(what)}: no usable credentials ({_text(error)}). Set them for this job."
        ) from error
    except ClientResponseError as error:
        if error.status in (401, 403):
            raise AccessRefusedError(
                f"{redacted(what)} was refused (HTTP {error.status}). Check credentials; a link may have expired."
            ) from error
        raise UnavailableError(
            f"{redacted(what)} failed (HTTP {error.status}). Check the server and the URL."
        ) from error
    except (TimeoutError, BotoCoreError, ClientError, ValueError) as error:
        # Clients report answers that they cannot parse, and settings that they cannot use, as ValueError.
        reason = redacted(str(error)) or "no answer in time"
        raise UnavailableError(
            f"{redacted(what)} failed ({reason}). Check endpoint and network; nothing is lost."
        ) from error


def patiently(
    what: str,
    operation: Callable[[], T],
    limit_s: float,
    *,
    writing: bool = False,
    sleep: Callable[[float], object] = pause,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """A remote operation, tried again with growing pauses while the storage is unavailable.

    Args:
        what: The operation and its URL, for messages.
        operation: May be called several times. Calls that it makes are bounded by the time that is left, see
            `RemoteFileSystem.call`.
        limit_s: How long to go on: tries and pauses together.
        writing: See `translated`.
        sleep: Waits.
        clock: The monotonic clock.

    Raises:
        IndexTTSJobError: What `translated` says; `UnavailableError` once the limit is reached.
    """
    limit_s = within_patience(limit_s)
    pauses = patience.delays(limit_s, random.Random())  # noqa: S311  # jitter
    end_at_s = clock() + limit_s
    while True:
        try:
            with translated(what, writing=writing), _client_errors(what), patience.deadline(end_at_s):
                return operation()
        except StorageFullError:
            raise
        except UnavailableError as error:
            pause_s = min(next(pauses, 0.0), end_at_s - clock())
            if pause_s <= 0:
                raise
            logger.warning("%s Trying again in %.1f s.", error, pause_s)
            sleep(pause_s)
