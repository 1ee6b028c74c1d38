"""A short answer is one piece on the wire; a stream's head waits for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from kgents_common.http_server.answer import Answer


class _Connection(asyncio.Transport):
    """Keeps each call of the kernel that it would make."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []
        self.is_closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.sent.append(b"".join(list_of_data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


async def test_head_and_body_are_one_piece() -> None:
    """Rule: what is written within one turn leaves together, and later pieces as they come."""
    connection = _Connection()
    answer = Answer(connection, asyncio.get_running_loop())
    answer.write(b"head ")
    answer.write(b"body")
    assert connection.sent == [b"head body"]
    await asyncio.sleep(0)
    answer.write(b"more")
    assert connection.sent == [b"head body", b"more"]


async def test_a_head_leaves_in_its_turn_whatever_follows() -> None:
    """Rule: whoever waits for a stream's head has it before the stream says anything."""
    connection = _Connection()
    answer = Answer(connection, asyncio.get_running_loop())
    answer.write(b"head ")
    assert connection.sent == []
    await asyncio.sleep(0)
    assert connection.sent == [b"head "]
    answer.write(b"body")
    assert connection.sent == [b"head ", b"body"]


async def test_a_head_leaves_before_its_connection_ends() -> None:
    """Rule: closing sends what was written; a connection that is gone already is sent nothing."""
    connection = _Connection()
    answer = Answer(connection, asyncio.get_running_loop())
    answer.write(b"head ")
    answer.close()
    assert (connection.sent, answer.is_closing()) == ([b"head "], True)
    late = Answer(connection, asyncio.get_running_loop())
    late.write(b"late")
    await asyncio.sleep(0)
    assert connection.sent == [b"head "]
