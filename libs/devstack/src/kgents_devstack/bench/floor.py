"""The floor: a raw ASGI app that decodes events, publishes them pipelined, and awaits their acks.

It has no authentication, no checks, no identity, no metrics, no traces and no limits: what is left is what
the wire and JetStream cost.
"""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

import msgspec
import nats
import uvicorn
import uvloop
from nats.aio.msg import Msg


class _Event(msgspec.Struct):
    id: str
    type: str


_ONE = msgspec.json.Decoder(_Event)
_MANY = msgspec.json.Decoder(list[msgspec.Raw])


class Floor:
    """The app."""

    def __init__(self) -> None:
        self._pending: dict[str, asyncio.Future[bytes]] = {}
        self._sent = 0
        self._inbox = ""
        self._client: Any = None

    async def start(self) -> None:
        """Connect and listen for acknowledgements."""
        self._client = await nats.connect(os.environ["NATS_SERVERS"])
        self._inbox = self._client.new_inbox() + "."
        await self._client.subscribe(
            self._inbox + "*", cb=self._answered, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        status = 200
        if scope["path"] in ("/v1/events", "/webhooks/stripe"):
            status = 202 if scope["path"] == "/v1/events" else 200
            body = b""
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body", False):
                    break
            events = _MANY.decode(body) if body[:1] == b"[" else [body]
            await asyncio.gather(*[await self._publish(bytes(event)) for event in events])
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def _publish(self, body: bytes) -> asyncio.Future[bytes]:
        event = _ONE.decode(body)
        self._sent += 1
        token = str(self._sent)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._pending[token] = future
        await self._client.publish(
            f"agentese.floor.{event.type}",
            body,
            reply=self._inbox + token,
            headers={"Nats-Msg-Id": f"floor-{event.id}"},
        )
        return future

    async def _answered(self, message: Msg) -> None:
        self._pending.pop(message.subject.rpartition(".")[2]).set_result(message.data)


async def _serve() -> None:
    floor = Floor()
    await floor.start()
    config = uvicorn.Config(
        floor,
        host=os.environ["KGENTS_HOST"],
        port=int(os.environ["KGENTS_PORT"]),
        loop="none",
        http="httptools",
        lifespan="off",
        access_log=False,
        log_config=None,
    )
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    await uvicorn.Server(config).serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
