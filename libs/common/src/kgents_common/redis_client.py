"""The one way to a Redis: to the server of an address, or to the one that sentinels call the primary.

Either way the client never waits long and never tries twice: whoever asks can do without, and does. A
failover is a Redis that was away for a moment.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from kgents_common.errors import ConfigurationError

SENTINEL_PORT = 26379
# Each with what redis-py calls the same way to one server.
_SENTINEL_SCHEMES = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_FORMS = (
    "redis[s]://[user:password@]host[:port][/db], or"
    " redis[s]+sentinel://[user:password@]sentinel[:port],sentinel[:port]/name of the primary[/db]"
)


def make_redis(url: str, *, timeout: timedelta = timedelta(milliseconds=200), connections: int = 32) -> Redis:
    """A client that waits for a free connection and, for anything else, fails at once.

    redis-py's own defaults retry with growing waits and raise under fan-out.

    Args:
        url: `redis://`, `rediss://` (under TLS) and `unix://` are one server's. `redis+sentinel://` and
            `rediss+sentinel://` (TLS to sentinels and servers alike) name sentinels, with commas between, and
            the primary that they watch; user and password are the servers', the sentinels' own are the
            parameters `sentinel_username` and `sentinel_password`. Other parameters are redis-py's, and go
            before ours.
        timeout: For a free connection, to connect, and for an answer; as long for each sentinel in turn.

    Raises:
        ConfigurationError: The URL is none of these; it is not repeated.
    """
    seconds = timeout.total_seconds()
    ours: dict[str, Any] = {
        "max_connections": connections,
        "timeout": seconds,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "retry": _never_again(),
        "decode_responses": True,
    }
    try:
        watched = _watched(url)
        pool = watched.pool(ours) if watched else BlockingConnectionPool.from_url(url, **ours)
        # It connects to nothing: it takes every parameter, or does not.
        pool.make_connection()  # type: ignore[no-untyped-call]
    except TypeError:
        raise ConfigurationError("a Redis URL has a parameter that no connection takes") from None
    except (ValueError, RedisError):
        raise ConfigurationError("not a Redis URL", hint=_FORMS) from None
    return Redis.from_pool(pool)  # closed with its client


def _checked(url: str) -> str:
    try:
        make_redis(url)
    except ConfigurationError as error:
        raise ValueError(f"{error.args[0]}: {_FORMS}") from None
    return url


# A setting that `make_redis` takes.
RedisUrl = Annotated[str, AfterValidator(_checked)]
REDIS_URL_TEXT = (
    "One server, `redis://` or `rediss://` (TLS, with `?ssl_ca_certs=<file>`), or the primary of sentinels,"
    " `redis[s]+sentinel://host:26379,host:26379/<name>`"
)


class _PrimaryPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to whichever server is the primary; where all are taken, one waits, as with one server."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """From the sentinels too, where the client is closed."""
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


@dataclass(frozen=True, slots=True)
class _Watched:
    """A primary by its name, and who knows where it is."""

    sentinels: tuple[tuple[str, int], ...]
    name: str
    has_tls: bool
    options: dict[str, Any]

    def pool(self, ours: dict[str, Any]) -> _PrimaryPool:
        """Its connections; what the URL says goes before what we say."""
        theirs = dict(self.options)
        credentials = {
            name: theirs.pop(f"sentinel_{name}")
            for name in ("username", "password")
            if f"sentinel_{name}" in theirs
        }
        told = {**ours, **theirs, "ssl": self.has_tls}
        shared = {name: value for name, value in told.items() if name.startswith(("socket_", "ssl"))}
        manager = Sentinel(  # type: ignore[no-untyped-call]
            self.sentinels, sentinel_kwargs={**shared, **credentials, "retry": _never_again()}
        )
        return _PrimaryPool(self.name, manager, is_master=True, **told)  # type: ignore[no-untyped-call]


def _watched(url: str) -> _Watched | None:
    """What a URL of sentinels says; None for any other.

    Raises:
        ValueError: A part of it is missing or wrong.
    """
    parts = urlsplit(url)
    scheme = _SENTINEL_SCHEMES.get(parts.scheme)
    if scheme is None:
        return None
    credentials, _, places = parts.netloc.rpartition("@")
    name, _, database = parts.path.removeprefix("/").partition("/")
    if not name or not (database.isdecimal() or not database) or parts.fragment:
        raise ValueError("no primary")
    options: dict[str, Any] = dict(parse_url(f"{scheme}://{credentials}@/{database}?{parts.query}"))
    options.pop("connection_class", None)
    return _Watched(
        sentinels=tuple(_place(one) for one in places.split(",")),
        name=name,
        has_tls=scheme == "rediss",
        options=options,
    )


def _place(text: str) -> tuple[str, int]:
    """Host and port of one sentinel."""
    place = urlsplit(f"//{text.strip()}")
    if not place.hostname or place.path or place.port == 0:
        raise ValueError("no host")
    return place.hostname, place.port or SENTINEL_PORT


def _never_again() -> Retry:
    return Retry(NoBackoff(), 0)
