"""Reading a request as ASGI gives it: headers as a dict, and a body that cannot be too large."""

from __future__ import annotations

from starlette.types import Receive, Scope

from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.unpacking import ENCODINGS, PackedError, UnpackedTooLargeError, unpack


class ClientGone(Exception):  # noqa: N818 nobody is left to answer
    """The client went away before its body was whole."""


def headers_of(scope: Scope) -> dict[str, str]:
    """Header names in lower case (as ASGI has them) to their last value."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def address_of(scope: Scope) -> str:
    """The client's address; behind a proxy that the server trusts, the one the proxy names."""
    client = scope.get("client")
    return client[0] if client else ""


def media_type(headers: dict[str, str]) -> str:
    """The content type without parameters, in lower case (RFC 9110 section 8.3)."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def expected_size(headers: dict[str, str], limit: int) -> int:
    """How many bytes a body will have at most: what is declared, within the limit, else the limit."""
    if encoding_of(headers):
        return limit  # a few bytes may be as many as are allowed
    declared = headers.get("content-length", "")
    return min(int(declared), limit) if declared.isdecimal() and len(declared) < 20 else limit


def encoding_of(headers: dict[str, str]) -> str:
    """How the body is packed; empty where it is not."""
    if "content-encoding" not in headers:
        return ""
    found = headers["content-encoding"].strip().lower()
    return "" if found == "identity" else found


async def read_packed_body(receive: Receive, headers: dict[str, str], limit: int) -> bytes:
    """The whole body, unpacked.

    Raises:
        Refused: 413 beyond `limit` bytes, packed or unpacked; 400 where it cannot be unpacked; 415 for an
            encoding that is not known.
        ClientGone: It did not come whole.
    """
    encoding = encoding_of(headers)
    if not encoding:
        return await read_body(receive, headers, limit)
    if encoding not in ENCODINGS:
        raise Refused(
            415,
            f"a body may be packed by one of: {', '.join(ENCODINGS)}",
            reason="unsupported_encoding",
            headers={"accept-encoding": ", ".join(ENCODINGS)},
        )
    packed = await read_body(receive, {**headers, "content-encoding": ""}, limit)
    try:
        return unpack(packed, encoding, limit)
    except UnpackedTooLargeError:
        raise _too_large(limit) from None
    except PackedError as error:
        raise Refused(400, f"the body is not {encoding}: {error}", reason="invalid_event") from None


async def read_body(receive: Receive, headers: dict[str, str], limit: int) -> bytes:
    """The whole body, which must not be packed.

    Raises:
        Refused: 413 beyond `limit` bytes, declared or sent; 415 for a content encoding.
        ClientGone: It did not come whole.
    """
    if encoding_of(headers):
        raise Refused(415, "send the body without a content encoding", reason="unsupported_encoding")
    declared = headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    first = await receive()
    if first["type"] == "http.disconnect":
        raise ClientGone
    body: bytes = first.get("body", b"")
    if not first.get("more_body", False):
        if len(body) > limit:
            raise _too_large(limit)
        return body
    chunks, size = [body], len(body)
    while True:
        if size > limit:
            raise _too_large(limit)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        chunks.append(chunk)
        size += len(chunk)
        if not message.get("more_body", False):
            if size > limit:
                raise _too_large(limit)
            return b"".join(chunks)


def _too_large(limit: int) -> Refused:
    return Refused(
        413,
        f"the body must be at most {limit} bytes",
        reason="too_large",
        headers={"connection": "close"},
    )
