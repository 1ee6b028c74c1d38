"""NATS's client protocol as bytes: its lines, messages and header blocks; it opens no socket.

nats-py 2.16 matches lines with patterns whose white space is Python's, decodes subjects strictly and takes
for granted that a header block has a line end. A NATS server checks none of that: it stores and delivers any
subject without blanks and line ends, and any bytes as headers. One such message ends nats-py's read loop,
and it is delivered again after every reconnect. Here what the server may send is read, and what it never
sends (a protocol out of step) is a ProtocolError, after which the only cure is another connection.

Source: docs.nats.io, "Client Protocol"; nats-server `client.go` (`splitArg`, `processPub`, `deliverMsg`).
"""

from __future__ import annotations

import json
import re
from typing import Any

import structlog
from nats.errors import BadHeaderError, ProtocolError
from nats.protocol.parser import Parser

CRLF = b"\r\n"
VERSION = b"NATS/1.0"
# INFO names every server of a cluster; other lines hold two subjects of 4 KiB at most.
MAX_LINE_BYTES = 1024 * 1024
# The most a server can be told to take (`max_payload`), with room for a status's own headers.
MAX_MESSAGE_BYTES = 65 * 1024 * 1024
STATUS_DIGITS = 3

# What a name is made of (RFC 9110 section 5.6.2), and what would end a value too early.
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LINE_ENDS = str.maketrans("\r\n", "  ")

_log = structlog.get_logger()


class Headers(dict[str, str]):
    """A message's headers as text that may be stored anywhere, with the bytes they were read from.

    Attributes:
        raw: The whole block, from `NATS/1.0` to the empty line where it has them.
    """

    def __init__(self, raw: bytes) -> None:
        super().__init__()
        self.raw = raw


def readable(raw: bytes) -> str:
    """Bytes as text that a log, a database and a terminal take: what is not text stands as `\\xNN`.

    The same bytes give the same text; two that differ may not.
    """
    text = raw.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def read_headers(block: bytes) -> Headers:
    """What a header block says; a line that is none, a name that is not ASCII, is left out and in `raw`.

    An inline status (`NATS/1.0 503 …`) becomes `Status` and `Description`, as nats-py has it. Whether a
    message is a status is not for its headers to say: see `pull.delivered`.
    """
    headers = Headers(block)
    first, *lines = block.split(CRLF)
    if not first.startswith(VERSION):
        return headers
    status = first[len(VERSION) :]
    if status.startswith(b" "):
        code, description = status[1 : 1 + STATUS_DIGITS].strip(), status[1 + STATUS_DIGITS :].strip()
        if code.isdigit():
            headers["Status"] = code.decode()
        if description:
            headers["Description"] = readable(description)
    for line in lines:
        name, colon, value = line.partition(b":")
        key = name.strip()
        if colon and key and key.isascii() and key.decode().isprintable() and b" " not in key:
            headers[key.decode()] = readable(value.strip())
    return headers


def header_line(name: str, value: str) -> bytes:
    """One header as a block has it; a line end within the value stands as a blank.

    Raises:
        nats.errors.BadHeaderError: The name is none.
    """
    if not _NAME.fullmatch(name):
        raise BadHeaderError(name)
    value = value.strip()
    if not value.isprintable():
        value = value.translate(_LINE_ENDS)
    return f"{name}: {value}\r\n".encode()


def header_block(*lines: bytes) -> bytes:
    """A message's header block of such lines, each of one header or of several."""
    return b"".join((VERSION, CRLF, *lines, CRLF))


class WireParser(Parser):
    """Reads the protocol and hands on what it says; nothing a message holds can end it.

    It stands on nats-py's `Client._process_msg` and its like; the tests of the client fail when they change.
    """

    def reset(self) -> None:
        """Begin anew, with another connection."""
        super().reset()
        self._message: tuple[bytes, int, bytes, int, int] | None = None

    async def parse(self, data: bytes = b"") -> None:
        """Take the next bytes.

        Raises:
            ProtocolError: The server and we are out of step.
        """
        self.buf.extend(data)
        while self.buf:
            if self._message is None:
                end = self.buf.find(CRLF)
                if end < 0:
                    if len(self.buf) > MAX_LINE_BYTES:
                        raise ProtocolError("nats: a line without an end")
                    return
                line = bytes(self.buf[:end])
                del self.buf[: end + len(CRLF)]
                await self._line(line)
            else:
                subject, sid, reply, header_bytes, size = self._message
                if len(self.buf) < size + len(CRLF):
                    return
                if self.buf[size : size + len(CRLF)] != CRLF:
                    raise ProtocolError("nats: a message longer than it said")
                headers = bytes(self.buf[:header_bytes])
                payload = bytes(self.buf[header_bytes:size])
                del self.buf[: size + len(CRLF)]
                self._message = None
                await self._hand_on(sid, subject, reply, payload, headers)

    async def _line(self, line: bytes) -> None:
        operation, _, arguments = line.partition(b" ")
        if operation == b"MSG":
            self._message = _announced(arguments, has_headers=False)
        elif operation == b"HMSG":
            self._message = _announced(arguments, has_headers=True)
        elif operation == b"PING":
            await self.nc._process_ping()
        elif operation == b"PONG":
            await self.nc._process_pong()
        elif operation == b"-ERR":
            await self.nc._process_err(readable(arguments.strip()).lower())
        elif operation == b"INFO":
            await self.nc._process_info(_info(arguments))
        elif operation != b"+OK":
            raise ProtocolError("nats: unknown protocol")

    async def _hand_on(self, sid: int, subject: bytes, reply: bytes, payload: bytes, headers: bytes) -> None:
        try:
            await self.nc._process_msg(sid, subject, reply, payload, headers)
        except Exception as error:  # one message must not end what reads all others
            _log.exception("nats.message_not_handed_on", subject=readable(subject))
            await self.nc._error_cb(error)


def _announced(arguments: bytes, *, has_headers: bool) -> tuple[bytes, int, bytes, int, int]:
    """Subject, subscription, reply, bytes of headers, bytes in all."""
    # Only blanks part them: a subject may hold what Python calls white space.
    parts = [part for part in arguments.split(b" ") if part]
    sizes = 2 if has_headers else 1
    if len(parts) not in (2 + sizes, 3 + sizes) or not parts[1].isdigit():
        raise ProtocolError("nats: malformed MSG")
    numbers = parts[-sizes:]
    if not all(number.isdigit() and len(number) <= 9 for number in numbers) or len(parts[1]) > 18:
        raise ProtocolError("nats: malformed MSG")
    size = int(numbers[-1])
    header_bytes = int(numbers[0]) if has_headers else 0
    if header_bytes > size or size > MAX_MESSAGE_BYTES:
        raise ProtocolError("nats: malformed MSG")
    reply = parts[2] if len(parts) == 3 + sizes else b""
    return parts[0], int(parts[1]), reply, header_bytes, size


def _info(arguments: bytes) -> dict[str, Any]:
    try:
        info = json.loads(arguments)
    except (ValueError, RecursionError):
        raise ProtocolError("nats: INFO is not JSON") from None
    if not isinstance(info, dict):
        raise ProtocolError("nats: INFO is not an object")
    return info


def _escaped(character: str) -> str:
    return character if character == " " else "".join(f"\\x{byte:02x}" for byte in character.encode())
