"""A stream's messages in order from a place on, through a named ephemeral consumer; nothing is acknowledged.

It works on every server from 2.10 (batched direct get needs 2.11) and on mirrors. The consumer is made under
a name of its own (`CONSUMER.CREATE.<stream>.<name>.<filter>`): the form without a name rewrites whatever
durable the body names, and a NATS user who may use it may rewrite everybody's. A delivery that is missing
shows in the consumer's own count; the reader then begins anew right after the last good one.

It never asks for headers only: a server up to 2.15.1 at least panics, and takes every stream with it, when
such a consumer comes to a message whose header block is one byte long, which anybody may publish.
"""

from __future__ import annotations

import contextlib
import secrets
from datetime import datetime, timedelta
from typing import Any

from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_common.connection.client import Client
from kgents_common.pull.delivered import Delivered
from kgents_common.pull.requests import API, End, Pull
from kgents_common.streams.jetstream_api import request

INACTIVE = timedelta(seconds=60)
ANSWER_SECONDS = 5.0


class Lost(Exception):  # noqa: N818 not an error of anybody's: the consumer is made anew
    """This consumer will give nothing more that can be trusted; what it gave before is good."""


class Forward:
    """One ephemeral consumer until it is lost; not for concurrent use.

    Attributes:
        is_lost: It will give nothing more that can be trusted; what it gave is good.
        pending: Messages that were still to come when the last one was sent, or at the beginning.
    """

    def __init__(self, pull: Pull, client: Client, stream: str, name: str, *, api: str, pending: int) -> None:
        self._pull = pull
        self._client = client
        self._stream = stream
        self._name = name
        self._api = api
        self._place = 0
        self._reason = ""
        self.is_lost = False
        self.pending = pending

    @classmethod
    async def opened(
        cls,
        client: Client,
        stream: str,
        *,
        start: int | datetime,
        filter_subject: str | None = None,
        description: str = "",
        api: str = API,
        inactive: timedelta = INACTIVE,
        timeout_seconds: float = ANSWER_SECONDS,
    ) -> Forward:
        """A consumer of what is stored from a sequence, or a moment, on.

        Args:
            start: The first sequence wanted, or the earliest time of storage (aware).
            api: The API's prefix; another for a stream behind a domain, e.g. `$JS.dr.API`.
            inactive: How long after its last use the server forgets it.

        Raises:
            JetStreamApiError: The server refused it.
            TransientError: No answer.
            nats.errors.Error: The connection is closed.
        """
        name = f"forward-{secrets.token_hex(8)}"
        config: dict[str, Any] = {
            "name": name,
            "description": description,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": int(inactive.total_seconds() * 1_000_000_000),
        }
        if isinstance(start, datetime):
            config |= {"deliver_policy": "by_start_time", "opt_start_time": start.isoformat()}
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": start}
        where = f"CONSUMER.CREATE.{stream}.{name}"
        if filter_subject is not None:
            config["filter_subject"] = filter_subject
            where += f".{filter_subject}"
        answer = await request(
            client, where, {"stream_name": stream, "config": config},
            timeout_seconds=timeout_seconds, api=api,
        )  # fmt: skip
        pull = Pull(client, stream, name, api=api)
        await pull.start()
        return cls(pull, client, stream, name, api=api, pending=int(answer.get("num_pending") or 0))

    async def next(
        self, *, batch: int, max_bytes: int, expires: timedelta, heartbeat: timedelta
    ) -> list[tuple[Msg, Delivered]]:
        """What has arrived since the last call; waits where nothing has, asking again when that is due.

        Raises:
            Lost: The consumer, the connection or a delivery is gone.
            nats.errors.Error, OSError: It could not be asked.
        """
        while not self.is_lost:
            if not self._pull.is_open:
                await self._pull.ask(batch, expires=expires, max_bytes=max_bytes, heartbeat=heartbeat)
            await self._pull.wait()
            found = self._taken()
            if found:
                return found
        raise Lost(self._reason or self._pull.reason)

    async def batch(
        self, *, limit: int, wait: timedelta | None, max_bytes: int | None = None
    ) -> list[tuple[Msg, Delivered]]:
        """The next messages, fewer than `limit` or none where no more came within `wait`.

        A consumer that is lost by then gives what it had; `is_lost` tells.

        Args:
            wait: None for what is there now.

        Raises:
            nats.errors.Error, OSError: It could not be asked.
        """
        await self._pull.ask(limit, expires=wait, max_bytes=max_bytes)
        await self._pull.whole()
        return self._taken()

    @property
    def is_at_end(self) -> bool:
        """Whether the server had nothing more when the last batch ended."""
        return self._pull.end is End.EMPTY

    async def close(self) -> None:
        """Give inbox and consumer back; what does not arrive, the server does by itself."""
        await self._pull.stop()
        with contextlib.suppress(NatsError, OSError):
            await self._client.publish(f"{self._api}.CONSUMER.DELETE.{self._stream}.{self._name}")

    def _taken(self) -> list[tuple[Msg, Delivered]]:
        """What has arrived, up to where a delivery is missing."""
        found: list[tuple[Msg, Delivered]] = []
        for message, one in self._pull.take():
            if one.place != self._place + 1:
                self.is_lost, self._reason = True, "a delivery is missing"
                break
            self._place = one.place
            self.pending = one.pending
            found.append((message, one))
        self.is_lost = self.is_lost or self._pull.end is End.LOST
        return found
