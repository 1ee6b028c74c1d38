"""Reading a request as ASGI gives it: headers as a dict, and a body that cannot be too large."""

from __future__ import annotations

from starlette.types import Receive, Scope

from kgents_api.handlers.refusal import Refused


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
    declared = headers.get("content-length", "")
    return min(int(declared), limit) if declared.isdecimal() and len(declared) < 20 else limit


async def read_body(receive: Receive, headers: dict[str, str], limit: int) -> bytes:
    """The whole body.

    Raises:
        Refused: 413 beyond `limit` bytes, declared or sent; 415 for a content encoding.
        ClientGone: It did not come whole.
    """
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
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
