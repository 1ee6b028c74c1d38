"""Requests of JetStream's JSON API that nats-py has no call for; it knows no stream of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from kgents_common.connection.client import Client as OurClient
from kgents_common.errors import KgentsError, TransientError


class JetStreamApiError(KgentsError):
    """JetStream answered a request of its API with an error.

    Attributes:
        code: The HTTP-like status, e.g. 404.
        err_code: JetStream's own number.
    """

    def __init__(self, description: str, code: int, err_code: int) -> None:
        super().__init__(f"jetstream: {description} ({err_code})")
        self.code = code
        self.err_code = err_code


class NotPermittedError(TransientError):
    """The connection's NATS user may not ask that; it is temporary as far as rights can be given.

    Attributes:
        subject: What it may not publish to.
    """

    def __init__(self, subject: str) -> None:
        super().__init__(
            f"nats: this user may not publish to {subject}",
            hint="an operator's command needs the operator's identity: NATS_NKEY_SEED_FILE of its seed,"
            " NATS_INBOX_PREFIX=_INBOX.operator",
        )
        self.subject = subject


async def request(
    client: Client,
    subject: str,
    payload: Mapping[str, Any] | None = None,
    *,
    timeout_seconds: float = 10,
    api: str = "$JS.API",
) -> dict[str, Any]:
    """One request of the JetStream API.

    Args:
        subject: What is put after the API's prefix, e.g. `STREAM.INFO.EVENTS`.
        api: The prefix; another for a stream behind a domain, e.g. `$JS.dr.API`.

    Raises:
        JetStreamApiError: The server refused it.
        NotPermittedError: This user may not ask it; known at once with a client of ours.
        TransientError: No answer, or one that is none of the API's.
    """
    body = json.dumps(payload).encode() if payload is not None else b""
    try:
        message = await _answer(client, f"{api}.{subject}", body, timeout_seconds)
        answer = json.loads(message.data)
    except (NatsError, OSError, TimeoutError, ValueError, RecursionError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} on {subject}") from error
    if not isinstance(answer, dict):
        raise TransientError(f"jetstream: an answer that is no object on {subject}")
    fault = answer.get("error")
    if isinstance(fault, dict):
        raise JetStreamApiError(fault.get("description", ""), fault.get("code", 0), fault.get("err_code", 0))
    return answer


async def _answer(client: Client, subject: str, body: bytes, timeout_seconds: float) -> Msg:
    if not isinstance(client, OurClient):
        return await client.request(subject, body, timeout=timeout_seconds)
    asking = asyncio.ensure_future(client.request(subject, body, timeout=timeout_seconds))
    with client.refusal(subject) as refused:
        try:
            await asyncio.wait((asking, refused), return_when=asyncio.FIRST_COMPLETED)
            if not asking.done():
                raise NotPermittedError(subject)
            return await asking
        finally:
            asking.cancel()


def server_version(client: Client) -> tuple[int, int]:
    """Major and minor of the connected server."""
    version = client.connected_server_version
    return version.major, version.minor
