"""A Redis' URL is of one server or of sentinels, with one patience; a wrong one is refused at the start."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import Field
from redis.asyncio import BlockingConnectionPool

from kgents_common.errors import ConfigurationError
from kgents_common.redis_client import RedisUrl, make_redis
from kgents_common.settings import ServiceSettings


class Example(ServiceSettings):
    redis_url: RedisUrl | None = Field(None, validation_alias="REDIS_URL")


def pool_of(url: str) -> Any:
    """The pool of a client that has connected to nothing yet."""
    return make_redis(url, timeout=timedelta(seconds=0.3), connections=7).connection_pool


@pytest.mark.parametrize(
    ("url", "sentinels", "name", "database"),
    [
        ("redis+sentinel://a/main", [("a", 26379)], "main", None),
        ("redis+sentinel://a:1,b,c:3/main/2", [("a", 1), ("b", 26379), ("c", 3)], "main", 2),
        (
            "rediss+sentinel://[::1]:5,b.example/main/0?ssl_ca_certs=/ca",
            [("::1", 5), ("b.example", 26379)],
            "main",
            0,
        ),
    ],
)
def test_a_url_of_sentinels_names_them_and_the_primary(
    url: str, sentinels: list[tuple[str, int]], name: str, database: int | None
) -> None:
    """Rule: `redis[s]+sentinel://host[:port],…/<name>[/<db>]`."""
    pool = pool_of(url)
    asked = [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]

    assert [(one["host"], one["port"]) for one in asked] == sentinels
    assert (pool.service_name, pool.connection_kwargs.get("db")) == (name, database)


@pytest.mark.parametrize(
    "url", ["redis://h/0", "rediss://h/0", "redis+sentinel://h/main", "rediss+sentinel://h/main"]
)
def test_whatever_the_url_the_client_waits_as_long_and_tries_once(url: str) -> None:
    """Rule: one pool's limits for both ways, and the same patience with a sentinel."""
    pool = pool_of(url)
    told = [pool.connection_kwargs]
    if "sentinel" in url:
        told += [one.connection_pool.connection_kwargs for one in pool.sentinel_manager.sentinels]

    assert isinstance(pool, BlockingConnectionPool)
    assert (pool.timeout, pool.max_connections) == (0.3, 7)
    for kwargs in told:
        assert (kwargs["socket_timeout"], kwargs["socket_connect_timeout"]) == (0.3, 0.3)
        assert kwargs["retry"].get_retries() == 0


def test_tls_and_its_authority_are_the_sentinels_and_the_servers() -> None:
    """Rule: `rediss+sentinel://` means both; each has its own credentials."""
    pool = pool_of(
        "rediss+sentinel://u:p%40w@h/main?ssl_ca_certs=/ca.crt&sentinel_username=s&sentinel_password=q"
    )
    asked = pool.sentinel_manager.sentinels[0].connection_pool
    server, sentinel = pool.make_connection(), asked.make_connection()

    assert server.ca_certs == sentinel.ca_certs == "/ca.crt"
    assert (server.check_hostname, sentinel.check_hostname) == (True, True)
    assert (server.username, server.password) == ("u", "p@w")
    assert (sentinel.username, sentinel.password) == ("s", "q")


@pytest.mark.parametrize(
    "url",
    [
        "http://hush@h",
        "redis://:hu/sh@h",
        "redis://:hush@h?socket_timeout=hush",
        "redis://h?unheard=hush",
        "rediss://h?ssl_cert_reqs=hush",
        "redis+sentinel://:hush@h",
        "redis+sentinel://:hush@h/",
        "redis+sentinel://:hush@h,/main",
        "redis+sentinel://:hush@/main",
        "redis+sentinel://:hush@h:0/main",
        "redis+sentinel://:hush@h:hush/main",
        "redis+sentinel://:hush@h/main/hush",
        "redis+sentinel://:hush@h/main/0/hush",
        "redis+sentinel://:hu/sh@h/main",
        "redis+sentinel://:hu#sh@h/main",
        "redis+sentinel://h/main?unheard=hush",
        "redis+sentinel://h/main?socket_timeout=hush",
        "sentinel+redis://:hush@h/main",
    ],
)
def test_a_wrong_url_is_refused_at_the_start_and_never_repeated(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the variable is named, with what a right one looks like."""
    monkeypatch.setenv("NATS_SERVERS", "nats://a:4222")
    monkeypatch.setenv("REDIS_URL", url)
    with pytest.raises(ConfigurationError) as error:
        Example.from_environment()

    assert "REDIS_URL" in str(error.value)
    assert "+sentinel://" in str(error.value)
    assert "hu" not in str(error.value)


def test_its_passwords_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: `--check` shows the sentinels and hides what opens them."""
    monkeypatch.setenv("NATS_SERVERS", "nats://a:4222")
    monkeypatch.setenv("REDIS_URL", "redis+sentinel://u:hush@a:1,b:2/main/0?sentinel_password=hush")
    shown = Example.from_environment().masked()["redis_url"]

    assert "@a:1,b:2/main/0" in shown
    assert "hush" not in shown
