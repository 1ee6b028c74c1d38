"""Requests of JetStream's JSON API that nats-py has no call for; it knows no stream of ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError

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
        TransientError: No answer, or one that is none of the API's.
    """
    body = json.dumps(payload).encode() if payload is not None else b""
    try:
        message = await client.request(f"{api}.{subject}", body, timeout=timeout_seconds)
        answer = json.loads(message.data)
    except (NatsError, OSError, TimeoutError, ValueError, RecursionError) as error:
        raise TransientError(f"jetstream: {type(error).__name__} on {subject}") from error
    if not isinstance(answer, dict):
        raise TransientError(f"jetstream: an answer that is no object on {subject}")
    fault = answer.get("error")
    if isinstance(fault, dict):
        raise JetStreamApiError(fault.get("description", ""), fault.get("code", 0), fault.get("err_code", 0))
    return answer


def server_version(client: Client) -> tuple[int, int]:
    """Major and minor of the connected server."""
    version = client.connected_server_version
    return version.major, version.minor
