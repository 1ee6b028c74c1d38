"""The HTTP server's edges, on sockets: what a client may cost, and what a stop does to its connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from kgents_common.application import application
from kgents_common.errors import ConfigurationError
from kgents_common.http_server import MAX_HEAD_BYTES, HttpServer, LastHandler, Limits
from kgents_devstack.waiting import HANGS_AFTER_SECONDS, reached

REQUEST = b"GET /one HTTP/1.1\r\nhost: a\r\n\r\n"
PATIENCE_SECONDS = HANGS_AFTER_SECONDS


@dataclass
class App:
    """Answers with the request's path and body once it may; `/stream` is begun at once."""

    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    began: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    disconnects: int = 0
    answers_first: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.began.release()
        path = scope["path"].encode()
        if self.answers_first:
            await self._start(send, path)
            await send({"type": "http.response.body", "body": path})
            return
        if path == b"/fails":
            raise RuntimeError("a flaw")
        if path == b"/fails-after":
            await self._start(send, b"/stream")
            await send({"type": "http.response.body", "body": path, "more_body": True})
            raise RuntimeError("a flaw")
        if path == b"/stream":
            await self._start(send, path)
            await send({"type": "http.response.body", "body": path, "more_body": True})
        body = b""
        while True:
            message: Message = await receive()
            if message["type"] == "http.disconnect":
                self.disconnects += 1
                return
            body += message["body"]
            if not message["more_body"]:
                break
        await self.may_answer.wait()
        if path != b"/stream":
            await self._start(send, path + body)
        await send({"type": "http.response.body", "body": path + body if path != b"/stream" else b""})

    async def _start(self, send: Send, body: bytes) -> None:
        headers = [] if body == b"/stream" else [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})


@dataclass
class Running:
    app: App
    server: HttpServer
    serving: asyncio.Task[None]
    port: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def begun(self) -> None:
        await asyncio.wait_for(self.app.began.acquire(), PATIENCE_SECONDS)

    async def stop(self) -> None:
        self.server.should_exit = True
        await asyncio.wait_for(self.serving, PATIENCE_SECONDS)


@asynccontextmanager
async def running(
    *, request_seconds: float = 60, answers: bool = True, limits: Limits | None = None
) -> AsyncIterator[Running]:
    app = App()
    if answers:
        app.may_answer.set()
    server = HttpServer(
        app, stalled_seconds=30, request_seconds=request_seconds, drain_seconds=5, limits=limits
    )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    serving = asyncio.create_task(server.serve_at("127.0.0.1", port))
    while not server.started:
        await asyncio.sleep(0.01)
    found = Running(app, server, serving, port)
    try:
        yield found
    finally:
        app.may_answer.set()
        await found.stop()


async def whole(reader: asyncio.StreamReader) -> bytes:
    """Everything until the server closes."""
    return await asyncio.wait_for(reader.read(), PATIENCE_SECONDS)


async def answer(reader: asyncio.StreamReader) -> bytes:
    """One answer without a body of interest."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE_SECONDS)
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return head + await reader.readexactly(length)


def problem_status(text: bytes) -> int:
    head, _, body = text.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    assert int(head.split()[1]) == json.loads(body)["status"]
    return int(head.split()[1])


@pytest.mark.parametrize("path", [b"/fails", b"/fails-after"])
async def test_what_nobody_answered_is_answered_500_and_the_connection_ends(path: bytes) -> None:
    """Rule: a failure of ours is a problem document, never a bare reset; once an answer began, a cut."""
    async with running() as found:
        reader, writer = await found.connect()
        writer.write(b"POST " + path + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")
        text = await whole(reader)
        if path == b"/fails":
            assert problem_status(text) == 500
        else:
            assert b"200 OK" in text
            assert not text.endswith(b"0\r\n\r\n")
        writer.close()


async def test_an_application_leaves_what_fails_to_the_last_handler() -> None:
    """Rule: every service's refusals are problem documents; Starlette's plain text is nowhere."""

    async def fails(_: Request) -> Response:
        raise RuntimeError("a flaw")

    async def teapot(_: Request) -> Response:
        raise HTTPException(418, "short and stout", {"x-pot": "1"})

    app = LastHandler(application([Route("/fails", fails), Route("/teapot", teapot)]))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://a") as client:
        answers = [
            await client.request(method, path)
            for method, path in [("GET", "/fails"), ("GET", "/no"), ("POST", "/fails"), ("GET", "/teapot")]
        ]
    assert [a.status_code for a in answers] == [500, 404, 405, 418]
    assert {a.headers["content-type"] for a in answers} == {"application/problem+json"}
    assert answers[0].headers["connection"] == "close"
    assert "flaw" not in answers[0].text
    assert answers[2].headers["allow"]
    assert (answers[3].json()["detail"], answers[3].headers["x-pot"]) == ("short and stout", "1")


async def test_an_idle_connection_ends_when_the_server_stops() -> None:
    async with running() as found:
        reader, writer = await found.connect()
        writer.write(REQUEST)
        assert b"connection: close" not in await answer(reader)
        await found.stop()
        assert await whole(reader) == b""


async def test_a_request_that_arrives_while_the_server_stops_is_answered() -> None:
    """Rule: an idle connection ends after a moment, so that a request on its way meets its answer."""
    async with running() as found:
        reader, writer = await found.connect()
        writer.write(REQUEST)
        await answer(reader)
        await found.server.stop_listening()
        stopping = asyncio.create_task(found.stop())
        await asyncio.sleep(0.3)  # uvicorn has told its connections to end
        writer.write(REQUEST)
        text = await whole(reader)
        assert text.endswith(b"/one")
        assert b"connection: close" in text
        await stopping


async def test_a_request_whose_head_is_half_read_is_answered() -> None:
    """Rule: what was read is never dropped, on a connection that had requests before as on a new one."""
    async with running() as found:
        old_reader, old_writer = await found.connect()
        old_writer.write(REQUEST)
        await answer(old_reader)
        new_reader, new_writer = await found.connect()
        for writer in (old_writer, new_writer):
            writer.write(REQUEST[:20])
        await asyncio.sleep(0.1)
        stopping = asyncio.create_task(found.stop())
        await asyncio.sleep(1)  # beyond what an idle connection gets
        for writer in (old_writer, new_writer):
            writer.write(REQUEST[20:])
        for reader in (old_reader, new_reader):
            assert (await whole(reader)).endswith(b"/one")
        await stopping


async def test_a_request_that_is_being_answered_ends_its_connection() -> None:
    async with running(answers=False) as found:
        reader, writer = await found.connect()
        writer.write(REQUEST)
        await found.begun()
        stopping = asyncio.create_task(found.stop())
        await asyncio.sleep(1)
        found.app.may_answer.set()
        text = await whole(reader)
        assert text.endswith(b"/one")
        assert b"connection: close" in text
        await stopping


async def test_requests_in_one_pipeline_are_all_answered() -> None:
    """Rule: the connection ends with the last request that was read, not with the first."""
    async with running(answers=False) as found:
        reader, writer = await found.connect()
        found.server.begin_drain()
        writer.write(REQUEST + REQUEST.replace(b"/one", b"/two"))
        await found.begun()
        found.app.may_answer.set()
        text = await whole(reader)
        assert text.count(b"HTTP/1.1 200") == 2
        assert text.endswith(b"/two")


async def test_a_connection_that_only_the_kernel_has_taken_is_served() -> None:
    """Rule: an established connection is not reset because the port is closed."""
    async with running() as found:
        clients = []
        for _ in range(20):  # without a pause for the server's loop, which is this one
            client = socket.create_connection(("127.0.0.1", found.port))
            client.sendall(REQUEST)
            client.setblocking(False)
            clients.append(client)
        await found.server.stop_listening()
        for client in clients:
            reader, _ = await asyncio.open_connection(sock=client)
            text = await whole(reader)
            assert text.endswith(b"/one")
            assert b"connection: close" in text
        with pytest.raises(ConnectionRefusedError):
            await found.connect()


async def test_while_it_drains_new_connections_are_served_and_every_answer_ends_its_own() -> None:
    async with running() as found:
        old_reader, old_writer = await found.connect()
        old_writer.write(REQUEST)
        await answer(old_reader)
        found.server.begin_drain()
        new_reader, new_writer = await found.connect()
        await asyncio.sleep(1)  # beyond what an idle connection gets once the port is closed
        for reader, writer in ((old_reader, old_writer), (new_reader, new_writer)):
            writer.write(REQUEST)
            assert b"connection: close" in await whole(reader)


@pytest.mark.parametrize(
    "sent", [b"no HTTP\r\n\r\n", b"GET / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01"]
)
async def test_what_is_no_request_gets_a_problem(sent: bytes) -> None:
    async with running() as found:
        reader, writer = await found.connect()
        writer.write(sent)
        assert problem_status(await whole(reader)) == 400


async def test_a_head_without_end_is_refused() -> None:
    """Rule: 431, and no more memory than a head may take."""
    async with running() as found:
        reader, writer = await found.connect()
        writer.write(b"GET /one HTTP/1.1\r\n")
        await asyncio.sleep(0.05)
        for _ in range(4 * MAX_HEAD_BYTES // 8192):
            writer.write(b"x-more: " + b"a" * 8182 + b"\r\n")
            await asyncio.sleep(0.01)
            if reader.at_eof():
                break
        with contextlib.suppress(OSError):  # what is sent after the close resets the connection
            await whole(reader)
        assert not found.server.server_state.connections
        assert found.app.began.locked(), "the application was called"


async def test_a_head_just_beyond_the_limit_is_told_so() -> None:
    async with running() as found:
        reader, writer = await found.connect()
        writer.write(b"GET /one HTTP/1.1\r\n")
        await asyncio.sleep(0.1)
        writer.write(b"x-more: " + b"a" * MAX_HEAD_BYTES)
        assert problem_status(await whole(reader)) == 431


@pytest.mark.parametrize(
    "sent", [REQUEST[:20], b"POST /one HTTP/1.1\r\ncontent-length: 10\r\n\r\nabc"], ids=["head", "body"]
)
async def test_a_request_that_does_not_come_whole_is_refused(sent: bytes) -> None:
    """Rule: 408; nobody holds a place by sending slowly."""
    async with running(request_seconds=1) as found:
        reader, writer = await found.connect()
        writer.write(sent)
        assert problem_status(await whole(reader)) == 408
        assert found.app.disconnects == (b"POST" in sent)


@pytest.mark.parametrize("sent", [b"", REQUEST], ids=["new", "used"])
async def test_line_feeds_hold_no_connection(sent: bytes) -> None:
    """Rule: a connection that asks for nothing ends, whatever it sends instead."""
    async with running(request_seconds=1) as found:
        reader, writer = await found.connect()
        writer.write(sent)
        if sent:
            await answer(reader)

        def has_ended() -> bool:
            writer.write(b"\r\n")
            return reader.at_eof() or reader.exception() is not None  # a reset, where one met the end

        await reached(has_ended)


async def test_a_slow_answer_is_not_a_slow_request() -> None:
    async with running(request_seconds=0.5, answers=False) as found:
        reader, writer = await found.connect()
        writer.write(REQUEST)
        await found.begun()
        await asyncio.sleep(2)
        found.app.may_answer.set()
        assert (await answer(reader)).endswith(b"/one")


async def test_garbage_is_not_answered_in_the_middle_of_an_answer() -> None:
    """Rule: a body that turns out wrong after the answer began ends the connection and nothing else."""
    async with running(answers=False) as found:
        reader, writer = await found.connect()
        writer.write(b"POST /stream HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
        await asyncio.wait_for(reader.readuntil(b"/stream\r\n"), PATIENCE_SECONDS)
        writer.write(b"this is no chunk\r\n")
        assert await whole(reader) == b""
        assert found.app.disconnects == 1


async def test_a_port_that_is_taken_is_said_to_be_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = HttpServer(App(), stalled_seconds=30, request_seconds=60, drain_seconds=5)
        with pytest.raises(ConfigurationError, match="cannot be served"):
            await server.serve_at("127.0.0.1", taken.getsockname()[1])
