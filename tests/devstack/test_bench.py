"""A benchmark tells each figure at once, keeps it, and is honest about what it could not measure."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from kgents_devstack.bench.offer import Line, TooSlowError, at_rate, post
from kgents_devstack.bench.report import Figure, Report


def report(directory: Path) -> tuple[Report, io.StringIO]:
    told = io.StringIO()
    return Report(Console(file=told, width=200), directory), told


def test_a_figure_is_told_and_kept_before_the_next_is_measured(tmp_path: Path) -> None:
    """Rule: a run that ends in the middle has lost nothing it had measured."""
    run, told = report(tmp_path)

    def measure() -> Iterator[Figure]:
        yield Figure("first", 1.5, "s", target=2, at_most=True)
        assert "first: 1.5 s" in told.getvalue()
        kept = json.loads(run.path.read_text())["parts"]["part"]
        assert kept["state"] == "measuring"
        assert [(f["what"], f["value"], f["is_met"]) for f in kept["figures"]] == [("first", 1.5, True)]
        yield Figure("second", 2, "s")

    run.run("part", measure())
    assert json.loads(run.path.read_text())["parts"]["part"]["state"] == "measured"
    assert run.is_good


def test_a_part_that_fails_ends_no_other(tmp_path: Path) -> None:
    """Rule: the failure is told, its figures stay, the rest is measured; the run is not good."""
    run, told = report(tmp_path)

    def fails() -> Iterator[Figure]:
        yield Figure("before", 1, "")
        raise ConnectionError("gone")

    run.run("fails", fails())
    run.run("after", iter([Figure("after", 2, "")]))
    run.end()
    parts = json.loads(run.path.read_text())["parts"]
    assert parts["fails"]["error"] == "ConnectionError: gone"
    assert [len(part["figures"]) for part in parts.values()] == [1, 1]
    assert "ConnectionError: gone" in told.getvalue()
    assert not run.is_good


def test_a_load_that_cannot_be_offered_is_no_figure(tmp_path: Path) -> None:
    """Rule: a machine too slow for a part is told as that, and is no failure of what is measured."""
    run, told = report(tmp_path)

    def slow() -> Iterator[Figure]:
        raise TooSlowError("half of it left late")
        yield

    run.run("slow", slow())
    assert "too slow for this one" in told.getvalue()
    assert run.is_good


def test_a_missed_target_is_told(tmp_path: Path) -> None:
    """Rule: a run with a figure beyond its target is not good."""
    run, told = report(tmp_path)
    run.run("part", iter([Figure("rate", 5, "/s", target=10)]))
    assert "missed" in told.getvalue()
    assert not run.is_good


async def test_requests_leave_when_they_are_due_whatever_the_answers_take() -> None:
    """Rule: a load is offered at its rate over few connections; a server that holds them all is too slow."""
    delay = 0.0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
            body = await reader.readexactly(length)
            await asyncio.sleep(delay)
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (length, body))

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except asyncio.IncompleteReadError:
            writer.close()

    answers = []

    async def send(line: Line, number: int) -> None:
        answers.append(await line.ask(post("/", str(number).encode())))

    async with await asyncio.start_server(quiet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        await at_rate(port, per_second=100, seconds=0.5, connections=4, send=send)
        assert sorted(answers) == sorted((200, str(n).encode()) for n in range(50))
        delay = 1.0
        with pytest.raises(TooSlowError, match="late"):
            await at_rate(port, per_second=20, seconds=0.5, connections=2, send=send)
