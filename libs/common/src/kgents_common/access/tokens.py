"""NATS' JSON web tokens, as far as auth callout needs them: the server's question read, our answer signed.

Sources: nats-io/jwt v2 (claims of type `user` and `authorization_response`; algorithm `ed25519-nkey`),
ADR-26 of nats-io/nats-architecture-and-design.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import nkeys

from kgents_common.errors import PermanentError

VERSION = 2
_HEADER = {"typ": "JWT", "alg": "ed25519-nkey"}


@dataclass(frozen=True, slots=True)
class Question:
    """What a server asks about one connection.

    Attributes:
        user_key: The public key that the answer speaks of, made by the server for this connection.
        server_id: Whom the answer is for.
        shown: The token, else the password that the client presented; empty for neither.
        address: Where it connects from.
    """

    user_key: str
    server_id: str
    shown: str
    address: str


def question(token: bytes) -> Question:
    """The server's question, from a message that only a server can have published.

    Raises:
        PermanentError: It is not one.
    """
    try:
        _, body, _ = token.decode("ascii").split(".")
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["nats"]
        options = claims["connect_opts"]
        shown = options.get("auth_token") or options.get("pass") or ""
        return Question(
            str(claims["user_nkey"]),
            str(claims["server_id"]["id"]),
            str(shown),
            str(claims["client_info"].get("host", "")),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PermanentError("not a question of a NATS server") from error


def user(
    issuer: nkeys.KeyPair,
    asked: Question,
    *,
    name: str,
    account: str,
    publish: Sequence[str],
    subscribe: Sequence[str],
    now: datetime,
    expires_at: datetime | None,
) -> str:
    """An answer that lets the connection in as a user of `account` with these permissions.

    Args:
        name: Shown in the server's list of connections.
        expires_at: When the server ends the connection; None for never.
    """
    permissions = {
        "pub": {"allow": list(publish)},
        "sub": {"allow": list(subscribe)},
        # A publisher needs one subscription for its acknowledgements; a few more are a client's own habits.
        "subs": 16,
        "data": -1,
        "payload": -1,
        "type": "user",
        "version": VERSION,
    }
    claims: dict[str, Any] = {"sub": asked.user_key, "aud": account, "name": name, "nats": permissions}
    if expires_at is not None:
        claims["exp"] = int(expires_at.timestamp())
    return _answer(issuer, asked, {"jwt": _sign(issuer, claims, now)}, now)


def refusal(issuer: nkeys.KeyPair, asked: Question, reason: str, *, now: datetime) -> str:
    """An answer that keeps the connection out; the reason is for the server's log, the client is not told."""
    return _answer(issuer, asked, {"error": reason}, now)


def _answer(issuer: nkeys.KeyPair, asked: Question, content: dict[str, str], now: datetime) -> str:
    response = {**content, "type": "authorization_response", "version": VERSION}
    return _sign(issuer, {"sub": asked.user_key, "aud": asked.server_id, "nats": response}, now)


def _sign(issuer: nkeys.KeyPair, claims: dict[str, Any], now: datetime) -> str:
    claims = {**claims, "iat": int(now.timestamp()), "iss": bytes(issuer.public_key).decode()}
    digest = hashlib.sha256(json.dumps(claims, sort_keys=True).encode()).digest()
    claims["jti"] = base64.b32encode(digest).decode().rstrip("=")
    signed = f"{_part(_HEADER)}.{_part(claims)}"
    return f"{signed}.{_encode(issuer.sign(signed.encode()))}"


def _part(value: dict[str, Any]) -> str:
    return _encode(json.dumps(value).encode())


def _encode(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()
