"""Large transfers to and from S3 through obstore, which takes a third of the processor time of the general client.

The processor time is the training's (`bench/checkpoint.py`). Only whole puts and ranged gets go this way; everything
that has to be exact about errors, listings and conditions stays with fsspec. Address, region and credentials are those
of its client, so there is one configuration. What fails here is done by the general client, whose errors users see;
after some failures in a row only by that one.
"""

import logging
import os
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Self, TypeVar

import fsspec.asyn
import numpy as np
import obstore
from obstore.exceptions import BaseError, NotFoundError
from obstore.store import S3Store

from indextts_job.hashing import Buffer

if TYPE_CHECKING:
    from obstore.store import S3Credential

logger = logging.getLogger(__name__)
T = TypeVar("T")

LEAST_BYTES = 2**20
"""Smaller transfers are bound by their latency."""
CREDENTIALS_LAST = timedelta(minutes=5)
"""They are asked for again after this; the general client's session renews those that expire."""
FAILURES = 3
"""After so many failures in a row this way is left for good."""
_CERTIFICATES = "AWS_CA_BUNDLE"
"""Variable of the general client that names its certificates, which obstore does not read."""


class BulkTransfers:
    """Puts and gets of one fsspec file system for S3."""

    def __init__(self, filesystem: Any) -> None:  # noqa: ANN401  # fsspec ships no types
        self._filesystem = filesystem
        self._stores: dict[str, S3Store] = {}
        self._failures = 0

    @classmethod
    def of(cls, filesystem: Any) -> Self | None:  # noqa: ANN401
        """For a file system, or None where the general client is needed."""
        if "s3" not in getattr(filesystem, "protocol", ()) or filesystem.anon or filesystem.s3_additional_kwargs:
            return None
        return cls(filesystem)

    def put(self, path: str, content: Buffer, timeout_s: float) -> bool:
        """Put a whole object, without a copy of its bytes.

        Args:
            path: Bucket and key.
            content: Its bytes. Behind a time-out they may still be read for a while.
            timeout_s: Limit for the transfer.

        Returns:
            Whether it is there; if not, the general client has to put it.

        Raises:
            TimeoutError: It takes longer.
        """
        if len(content) < LEAST_BYTES:
            return False
        return self._tried(path, lambda store, key: _put(store, key, content), timeout_s) is not None

    def read_into(self, path: str, start: int, place: memoryview, timeout_s: float) -> bool:
        """Read a range to its place.

        Args:
            path: Bucket and key.
            start: First byte of the range, which is as long as the place.
            place: Where to.
            timeout_s: Limit for the transfer.

        Returns:
            Whether all of it was read; if not, the general client has to read it.

        Raises:
            FileNotFoundError: There is no such object.
            TimeoutError: It takes longer.
        """
        if len(place) < LEAST_BYTES:
            return False
        content = self._tried(path, lambda store, key: _get(store, key, start, len(place)), timeout_s)
        if content is None or len(content) != len(place):
            return False
        # In this thread, and by NumPy, which releases the interpreter lock.
        np.frombuffer(place, np.uint8)[:] = np.frombuffer(content, np.uint8)
        return True

    def _tried(
        self, path: str, transfer: Callable[[S3Store, str], Coroutine[Any, Any, T]], timeout_s: float
    ) -> T | None:
        """The result of a transfer; None if it failed."""
        if self._failures >= FAILURES:
            return None
        bucket, _, key = path.partition("/")

        async def run() -> T:
            if bucket not in self._stores:
                self._stores[bucket] = await self._store(bucket)
            return await transfer(self._stores[bucket], key)

        try:
            # In fsspec's own loop: the call can be given up from here, as those of the general client.
            found: T = fsspec.asyn.sync(self._filesystem.loop, run, timeout=timeout_s)
        except NotFoundError as error:
            raise FileNotFoundError(path) from error
        except TimeoutError as error:
            self._failed(bucket, error)
            raise  # the time is spent; a retry goes on
        except (BaseError, ValueError) as error:
            self._failed(bucket, error)
            return None
        self._failures = 0
        return found

    def _failed(self, bucket: str, error: Exception) -> None:
        self._failures += 1
        if self._failures == FAILURES:
            logger.info("obstore is not used for s3://%s any more: %s", bucket, error or "no answer in time")

    async def _store(self, bucket: str) -> S3Store:
        client = await self._filesystem.set_session()
        insecure = client.meta.endpoint_url.startswith("http://")
        if os.environ.get(_CERTIFICATES) and not insecure:
            raise ValueError(f"{_CERTIFICATES} is set")
        return S3Store(
            bucket,
            endpoint=client.meta.endpoint_url,
            region=client.meta.region_name or "us-east-1",
            credential_provider=self._credentials,
            client_options={
                "allow_http": insecure,
                # Retries and their limits are those of `errors.patiently`.
                "timeout": timedelta(hours=1),
            },
            retry_config={"max_retries": 0},
        )

    async def _credentials(self) -> "S3Credential":
        filesystem = self._filesystem
        expires_at = datetime.now(UTC) + CREDENTIALS_LAST
        if filesystem.key:
            found = (filesystem.key, filesystem.secret, filesystem.token)
        else:
            session = await filesystem.session.get_credentials()
            if session is None:
                raise ValueError("no credentials")
            frozen = await session.get_frozen_credentials()
            found = (frozen.access_key, frozen.secret_key, frozen.token)
        key, secret, token = found
        return {"access_key_id": key, "secret_access_key": secret, "token": token, "expires_at": expires_at}


async def _put(store: S3Store, key: str, content: Buffer) -> bool:
    await obstore.put_async(store, key, content, use_multipart=False)
    return True


async def _get(store: S3Store, key: str, start: int, length: int) -> Buffer:
    return memoryview(await obstore.get_range_async(store, key, start=start, length=length))
