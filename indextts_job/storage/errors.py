"""Failures of file systems as errors that a user can act on, one class for each action, and bounded retries."""

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
"""Errors of paths that cannot exist on any node: a retry elsewhere would fail too."""
_CLOCK_CODES = ("RequestTimeTooSkewed", "RequestInTheFuture")
"""Error codes of S3: the time in the signature is too far from the server's."""
CLOCK_TOLERANCE_S = 300.0
"""The strictest store refuses a signature whose time differs by more than this."""


@contextlib.contextmanager
def translated(what: str, *, writing: bool = False) -> Iterator[None]:
    """Translate failures to errors of this program, with the secrets of URLs removed.

    FileExistsError always passes through; FileNotFoundError does unless something was to be written.

    Args:
        what: The operation and its path or URL: the beginning of the message.
        writing: "Not found" means that the folder to write to does not exist, which is an error of the settings.

    Raises:
        AccessRefusedError: Permission or credentials.
        ConfigError: A place that cannot exist.
        StorageFullError: No space.
        UnavailableError: Everything else.
    """
    try:
        yield
    except FileExistsError:
        raise  # callers of `create` decide what a taken key means
    except FileNotFoundError as error:
        if not writing:
            raise  # callers of a read decide whether the file had to be there
        raise _translation(redacted(what), error) from error
    except OSError as error:
        raise _translation(redacted(what), error) from error


def _translation(what: str, error: OSError) -> Exception:
    # A folder under the name of a file is as good as no file, and readers handle that already.
    if isinstance(error, IsADirectoryError):
        return FileNotFoundError(f"{what}: a folder, expected a file")
    if isinstance(error, PermissionError):
        return _refused(what, error)
    if advice := _advice_for_place(error):
        return ConfigError(f"{what} failed ({_text(error)}). {advice}")
    # A class of its own: a retry within seconds cannot help, and `patiently` leaves it alone.
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFullError(
            f"{what} failed: no space is left ({_text(error)}). Free some; committed checkpoints are intact."
        )
    return UnavailableError(f"{what} failed ({_text(error)}). Check the storage; committed checkpoints are intact.")


def _advice_for_place(error: OSError) -> str:
    """Advice for a path that cannot exist, where a retry does not help; empty for other failures."""
    if isinstance(error, FileNotFoundError):
        return "The place does not exist; choose another one."
    if isinstance(error, NotADirectoryError):
        return "The path runs through a file; choose another one."
    return "No such path can exist; give another one." if error.errno in _NO_SUCH_PLACE else ""


def _text(error: BaseException) -> str:
    # Some errors of clients have no text at all.
    return redacted(str(error)) or type(error).__name__


def _refused(what: str, error: PermissionError) -> IndexTTSJobError:
    """The error for refused access: for good, or only because of this machine's clock, when another node may help."""
    # s3fs keeps the answer of the server in the cause, the ClientError of botocore.
    answer: Mapping[str, Any] = getattr(error.__cause__, "response", None) or {}
    offset_s = _clock_offset_s(answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}))
    # Not every store has a code of its own for this; the date header of its answer shows the difference as well.
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
    # The header comes from a server: it may be missing, or be no date.
    except (KeyError, TypeError, ValueError, OverflowError):
        return 0.0


@contextlib.contextmanager
def _client_errors(what: str) -> Iterator[None]:
    """Translate failures that clients of stores and web servers report as other classes than OSError."""
    from aiohttp import ClientError, ClientResponseError  # noqa: PLC0415  # only remote operations pay for these
    from botocore.exceptions import (  # noqa: PLC0415
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        TokenRetrievalError,
    )

    try:
        yield
    # Before BotoCoreError, their base class: a retry cannot find credentials.
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
    """The result of a remote operation, retried with growing pauses while the storage is unavailable.

    Args:
        what: The operation and its URL, for messages.
        operation: May be called several times. Each of its calls is bounded by the time that is left
            (`RemoteFileSystem.call`).
        limit_s: Bound of all tries and pauses together.
        writing: As in `translated`.
        sleep: Waits; the tests give their own, as for `clock`.
        clock: The monotonic clock.

    Raises:
        IndexTTSJobError: What `translated` says; `UnavailableError` once the limit is reached.
    """
    limit_s = within_patience(limit_s)
    pauses = patience.delays(limit_s, random.Random())  # noqa: S311  # jitter
    # A deadline, not a number of tries: 20 tries that each hang for a minute would take 20 minutes.
    end_at_s = clock() + limit_s
    while True:
        try:
            with translated(what, writing=writing), _client_errors(what), patience.deadline(end_at_s):
                return operation()
        except StorageFullError:
            raise  # a subclass of UnavailableError, but space does not appear within seconds
        except UnavailableError as error:
            pause_s = min(next(pauses, 0.0), end_at_s - clock())
            # The last try has used up the limit: its error tells more than a message about time.
            if pause_s <= 0:
                raise
            logger.warning("%s Trying again in %.1f s.", error, pause_s)
            sleep(pause_s)
