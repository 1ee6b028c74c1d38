"""The two streams on a server of ours, as `kgents_common.streams apply` makes them, but in this process."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import nats

from kgents_common import streams
from kgents_devstack.servers.process import StartError


def apply_streams(url: str, *, max_bytes: int | None = None) -> None:
    """Bring the streams to their specification; may be called where an event loop runs.

    Args:
        max_bytes: Each stream's limit, instead of the specification's.

    Raises:
        StartError: The server does not take them.
    """
    wanted = streams.scaled(streams.STREAMS, max_bytes) if max_bytes else streams.STREAMS

    async def ensure() -> None:
        client = await nats.connect(url, connect_timeout=10)
        try:
            await streams.ensure(client, streams=wanted)
        finally:
            await client.close()

    with ThreadPoolExecutor(1) as pool:
        try:
            pool.submit(asyncio.run, ensure()).result(60)
        except Exception as error:
            raise StartError(f"the streams could not be applied: {error}") from error
