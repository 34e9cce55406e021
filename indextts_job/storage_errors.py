"""Failures of file systems as errors a user can act on, told apart by class, and patience with those that may pass."""

import contextlib
import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from indextts_job.errors import AccessRefusedError, ConfigError, StorageFullError, UnavailableError
from indextts_job.patience import within_patience
from indextts_job.retry import delays

logger = logging.getLogger(__name__)
T = TypeVar("T")


@contextlib.contextmanager
def translated(what: str, *, writing: bool = False) -> Iterator[None]:
    """Translate failures; "exists", and "not found" of a read, pass through.

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
    except FileNotFoundError as error:
        if not writing:
            raise
        raise ConfigError(f"{what} failed ({error}). The place does not exist; choose another one.") from error
    except FileExistsError:
        raise
    except IsADirectoryError as error:
        raise FileNotFoundError(f"{what}: a folder, expected a file") from error
    except PermissionError as error:
        raise AccessRefusedError(f"{what} was refused ({error}). Check credentials and permissions.") from error
    except NotADirectoryError as error:
        raise ConfigError(f"{what} failed ({error}). The path runs through a file; choose another one.") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFullError(
                f"{what} failed: no space is left ({error}). Free some; committed checkpoints are intact."
            ) from error
        raise UnavailableError(
            f"{what} failed ({error}). Check the storage; committed checkpoints are intact."
        ) from error


@contextlib.contextmanager
def _client_errors(what: str) -> Iterator[None]:
    """Failures that S3 clients report outside the OSError family."""
    from botocore.exceptions import (  # noqa: PLC0415  # only remote operations pay for this import
        BotoCoreError,
        CredentialRetrievalError,
        NoCredentialsError,
        TokenRetrievalError,
    )

    try:
        yield
    except (NoCredentialsError, CredentialRetrievalError, TokenRetrievalError) as error:
        raise AccessRefusedError(f"{what}: no usable credentials ({error}). Set them for this job.") from error
    except (TimeoutError, BotoCoreError) as error:
        reason = str(error) or "no answer in time"
        raise UnavailableError(f"{what} failed ({reason}). Check endpoint and network; nothing is lost.") from error


def patiently(
    what: str,
    operation: Callable[[], T],
    limit_s: float,
    *,
    writing: bool = False,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """A remote operation, tried again with growing pauses while the storage is unavailable.

    Args:
        what: The operation and its URL, for messages.
        operation: May be called several times.
        limit_s: How long to go on.
        writing: See `translated`.
        sleep: Waits.

    Raises:
        IndexTTSJobError: What `translated` says; `UnavailableError` once the limit is reached.
    """
    limit_s = within_patience(limit_s)
    pauses = delays(limit_s, random.Random())  # noqa: S311  # jitter
    while True:
        try:
            with translated(what, writing=writing), _client_errors(what):
                return operation()
        except StorageFullError:
            raise
        except UnavailableError as error:
            pause_s = next(pauses, None)
            if pause_s is None:
                raise
            logger.warning("%s Trying again in %.1f s.", error, pause_s)
            sleep(pause_s)
