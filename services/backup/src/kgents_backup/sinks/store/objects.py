"""A store in S3, GCS or Azure through obstore; retries and signing are obstore's, the contract is ours."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import from_url

from kgents_backup.model.faults import StoreError
from kgents_backup.model.ports import Entry, Versioned
from kgents_common.errors import ConfigurationError

# Files are at most a part (8 MiB) or a segment; below the size from which obstore would split a put.
CALL_SECONDS = 120.0

Result = TypeVar("Result")


class _Client(Protocol):
    """The part of obstore's store that is used."""

    def put_async(self, path: str, file: bytes, **options: Any) -> Awaitable[Any]: ...
    def get_async(self, path: str) -> Awaitable[Any]: ...
    def delete_async(self, paths: str) -> Awaitable[None]: ...
    def list(self, prefix: str | None = None) -> Any: ...


class ObjectStore:
    """Objects below a bucket's prefix. A put is atomic by the service's own contract.

    `create` and `replace` are conditional puts (`If-None-Match: *`, `If-Match`), which S3, GCS, Azure and
    SeaweedFS offer. Where a service does not, `create` looks first: two that start at the same moment could
    then both believe they were first, so such a bucket should have one writer.
    """

    def __init__(
        self, client: _Client, *, name: str = "offsite", url: str = "", call_seconds: float = CALL_SECONDS
    ) -> None:
        self.name = name
        self.url = url
        self._client = client
        self._seconds = call_seconds

    async def put(self, key: str, data: bytes) -> None:
        """See `Store.put`."""
        await self._call(key, self._client.put_async(key, data, use_multipart=False))

    async def create(self, key: str, data: bytes) -> bool:
        """See `Store.create`."""
        try:
            await self._call(key, self._client.put_async(key, data, mode="create", use_multipart=False))
        except AlreadyExistsError:
            return False
        except NotImplementedError:
            try:
                await self.get(key)
            except FileNotFoundError:
                await self.put(key, data)
                return True
            return False
        return True

    async def replace(self, key: str, data: bytes, version: str) -> bool:
        """See `Store.replace`."""
        try:
            await self._call(
                key, self._client.put_async(key, data, mode={"e_tag": version}, use_multipart=False)
            )
        except (PreconditionError, FileNotFoundError):
            return False
        except NotImplementedError:
            if (await self.get_versioned(key)).version != version:
                return False
            await self.put(key, data)
        return True

    async def get(self, key: str) -> bytes:
        """See `Store.get`."""
        return (await self.get_versioned(key)).data

    async def get_versioned(self, key: str) -> Versioned:
        """See `Store.get_versioned`."""
        answer = await self._call(key, self._client.get_async(key))
        data = await self._call(key, answer.bytes_async())
        return Versioned(bytes(data), str(answer.meta["e_tag"]))

    async def list(self, prefix: str) -> Sequence[Entry]:
        """See `Store.list`."""
        found: list[Entry] = []
        pages = self._client.list(prefix.rstrip("/") or None).__aiter__()
        while True:
            try:
                page = await self._call(prefix, pages.__anext__())
            except StopAsyncIteration:
                return sorted(found, key=lambda e: e.key)
            found += [Entry(m["path"], m["size"], m["last_modified"]) for m in page]

    async def delete(self, key: str) -> None:
        """See `Store.delete`."""
        try:
            await self._call(key, self._client.delete_async(key))
        except FileNotFoundError:
            return

    async def _call(self, key: str, call: Awaitable[Result]) -> Result:
        try:
            return await asyncio.wait_for(call, self._seconds)
        except (AlreadyExistsError, PreconditionError, FileNotFoundError, NotImplementedError):
            raise
        except (BaseError, OSError, TimeoutError) as error:
            reason = str(error).splitlines()[0][:300] if str(error) else f"no answer in {self._seconds:.0f} s"
            raise StoreError(
                f"{self.name}: {key}: {type(error).__name__}: {reason}",
                hint="check the bucket, its credentials and the network; the local copy stands",
            ) from error


def open_object_store(
    url: str,
    *,
    options: Mapping[str, str] | None = None,
    name: str = "offsite",
    call_seconds: float = CALL_SECONDS,
    retry_seconds: float = 60,
) -> ObjectStore:
    """The store a URL names: `s3://bucket/prefix`, `gs://…`, `az://…`; nothing is sent yet.

    Args:
        options: obstore's own (endpoint, access_key_id, …), beside the service's usual environment variables.
        call_seconds: The longest one call may take, retries included.

    Raises:
        ConfigurationError: The URL or an option is not one obstore knows.
    """
    given = dict(options or {})
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=min(call_seconds, 60)),
        "connect_timeout": timedelta(seconds=5),
    }
    if given.get("endpoint", "").startswith("http://"):
        client["allow_http"] = True
    try:
        store = from_url(
            url,
            config=cast("Any", given),
            client_options=cast("Any", client),
            retry_config={"retry_timeout": timedelta(seconds=retry_seconds), "max_retries": 5},
        )
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"the off-site store cannot be opened: {str(error).splitlines()[0]}",
            hint="set KGENTS_BACKUP_OFFSITE_URL to s3://bucket/prefix, gs://… or az://…",
        ) from error
    return ObjectStore(cast("_Client", store), name=name, url=url, call_seconds=call_seconds)
