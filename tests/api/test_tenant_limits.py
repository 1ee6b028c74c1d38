"""Bytes are limited as events are, a refused request costs nothing, and nobody fills the door for others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kgents_api.handlers.events import Events
from kgents_api.handlers.intake import Limits as Sizes
from kgents_api.handlers.refusal import Refused
from kgents_api.handlers.request import expected_size
from kgents_api.model.caller import Caller
from kgents_api.model.rate_limit import Bucket, Quota, RateLimiter
from kgents_api.model.receipts import Failure, PartlyStoredError, Receipt
from kgents_api.model.tenant_limits import FairShare, Limit, TenantLimits
from kgents_api.settings import ApiSettings
from kgents_common import keyring
from kgents_common.clock import ManualClock
from kgents_common.errors import ConfigurationError, PermanentError
from kgents_devstack.servers import NatsServer, apply_streams

from .conftest import serving

MIB = 1024 * 1024


class Holds:
    """A bucket that holds so much and is never filled."""

    def __init__(self, left: int) -> None:
        self.left = left

    async def take(self, tenant: str, tokens: int) -> Bucket:
        if tokens > self.left:
            return Bucket(False, self.left, 5.0, 5.0)
        self.left -= tokens
        return Bucket(True, self.left, 0.0, 1.0)


def limits(events: int, kibibytes: int) -> TenantLimits:
    clock = ManualClock()
    quota = Quota(100, 1000)
    return TenantLimits(
        [
            Limit(RateLimiter(Holds(events), quota, clock), "may send 100 events a second"),
            Limit(RateLimiter(Holds(kibibytes), quota, clock), "may send bytes", in_bytes=True),
        ]
    )


async def test_large_events_meet_the_limit_of_bytes() -> None:
    """Rule: a request takes of every limit, in whole units of 1024 bytes, or of none."""
    made = limits(events=100, kibibytes=10)
    assert (await made.take("acme", 1, 5 * 1024)).verdict.allowed
    refused = await made.take("acme", 50, 5 * 1024 + 1)
    assert (refused.verdict.allowed, refused.limit.says) == (False, "may send bytes")
    # What the first limit gave was given back: 99 are still there.
    assert (await made.take("acme", 50, 4 * 1024)).verdict.allowed
    assert (await made.take("acme", 49, 1024)).verdict.allowed


async def test_what_came_to_nothing_is_given_back() -> None:
    """Rule: a request answered 503 spends no tokens."""
    made = limits(events=10, kibibytes=10)
    for _ in range(20):
        assert (await made.take("acme", 10, 1)).verdict.allowed
        made.give_back("acme", 10, 1)


class Away:
    """A sink that stores nothing."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def publish(self, *_: object) -> list[Receipt]:
        raise self.error


class Lets:
    """Authentication that knows everybody as acme."""

    async def caller(self, *_: object, **__: object) -> Caller:
        return Caller("acme", frozenset({"events:write"}), "key_1")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PartlyStoredError([Failure(0, "away")], 1), 503),
        (PermanentError("larger than the stream takes"), 413),
    ],
)
async def test_what_the_door_did_not_store_costs_nothing(error: Exception, status: int) -> None:
    """Rule: while the stream is away, whoever sends again and again has its rate when it is back."""
    made = limits(events=1, kibibytes=1)
    size = Sizes(event_bytes=MIB, batch_bytes=MIB, batch_events=10)
    door = Events(Lets(), Away(error), FairShare(MIB * 8), limits=size, clock=ManualClock(), limiter=made)  # type: ignore[arg-type]
    body = json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t"}).encode()
    headers = [(b"content-type", b"application/cloudevents+json"), (b"content-length", b"%d" % len(body))]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    for _ in range(3):
        scope = {"type": "http", "method": "POST", "path": "/v1/events", "headers": headers}
        with pytest.raises(Refused) as refused:
            await door(scope, receive, None)  # type: ignore[arg-type]
        assert refused.value.response.status_code == status
    assert (await made.take("acme", 1, 1)).verdict.allowed


def test_one_that_fills_the_door_leaves_room_for_whoever_comes() -> None:
    """Rule: fair when contended; alone, a tenant may use half of all."""
    share = FairShare(100)
    noisy = sum(share.enter("noisy", 5) for _ in range(50))
    assert noisy == 10
    assert share.enter("quiet", 5)
    assert sum(share.enter("third", 5) for _ in range(50)) == 5
    assert not share.enter("noisy", 5)
    assert share.total <= 100
    for tenant, count in (("noisy", noisy), ("quiet", 1), ("third", 5)):
        for _ in range(count):
            share.leave(tenant, 5)
    assert share.total == 0
    assert share.enter("noisy", 50)


@pytest.mark.parametrize(
    ("headers", "size"),
    [
        ({"content-length": "10"}, 10),
        ({"content-length": "1000"}, 100),
        ({"content-length": "9" * 40}, 100),
        ({"content-length": "x"}, 100),
        ({}, 100),
        ({"content-length": "10", "content-encoding": "gzip"}, 100),
    ],
)
def test_a_request_is_counted_for_as_much_as_it_may_hold(headers: dict[str, str], size: int) -> None:
    """Rule: memory is bounded before a byte of the body is read."""
    assert expected_size(headers, 100) == size


@pytest.mark.parametrize(
    ("limit", "says", "most"),
    [
        ({"KGENTS_TENANT_STORED_BYTES": str(2 * MIB)}, "may have 2097152 bytes of events in the stream", 2),
        (
            {"KGENTS_RATE_LIMIT_BYTES_PER_SECOND": str(MIB // 10)},
            "may send 104857 bytes of events a second",
            49,
        ),
    ],
    ids=["stored", "a second"],
)
def test_a_tenant_that_writes_too_much_is_refused_and_another_is_not(
    tmp_path: Path, nats_server: NatsServer, own_valkey: Any, limit: dict[str, str], says: str, most: int
) -> None:
    """Rule: per-tenant byte rates and stored-byte quotas, shared through Redis; the answer says which. Of a
    quota one half is there at once, so that no more than the whole is ever stored."""
    apply_streams(nats_server.url)
    minted = {tenant: keyring.mint(tenant, keyring.TENANT_SCOPES) for tenant in ("acme", "globex")}
    keys = {tenant: key for tenant, (key, _) in minted.items()}

    def body(number: int) -> bytes:
        data = {"tokens": 1, "text": "x" * 500_000}
        event = {
            "specversion": "1.0",
            "id": f"{tmp_path.name}-{number}",
            "source": "a",
            "type": "t",
            "data": data,
        }
        return json.dumps(event).encode()

    # Either lets a mebibyte pass at once; the first then nothing for hours, the second two events after ten
    # seconds.
    told = {"REDIS_URL": own_valkey.url, "KGENTS_MAX_BATCH_BYTES": str(MIB - 2048), **limit}
    with serving(tmp_path, nats_server, keys, [record for _, record in minted.values()], **told) as clients:
        kind = {"content-type": "application/cloudevents+json"}
        answers = [clients["acme"].post("/v1/events", content=body(n), headers=kind) for n in range(2)]
        assert [answer.status_code for answer in answers] == [202, 202]
        # A machine so slow that it waits five seconds for an answer is asked again.
        while len(answers) <= most and answers[-1].status_code == 202:
            answers.append(clients["acme"].post("/v1/events", content=body(len(answers)), headers=kind))
        assert answers[-1].status_code == 429
        assert says in answers[-1].json()["detail"]
        assert clients["globex"].post("/v1/events", content=body(0), headers=kind).status_code == 202


@pytest.mark.parametrize(
    "told",
    [
        {"KGENTS_RATE_LIMIT_BYTES_PER_SECOND": "1000"},
        {"KGENTS_TENANT_STORED_BYTES": "1000"},
        {"KGENTS_MAX_HELD_BYTES": "1000"},
    ],
)
def test_limits_that_no_batch_could_pass_are_refused(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a setting that cannot work stops the process, by name."""
    for name, value in {"NATS_SERVERS": "nats://x", "KGENTS_KEYRING_FILE": "k", **told}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=next(iter(told))):
        ApiSettings.from_environment()
