"""Who sends faster than it may, straight to NATS: seen in what the servers count, kept out, and forgiven."""

from __future__ import annotations

from kgents_api.model.agent_pace import (
    BURST_SECONDS,
    FORGIVEN_AFTER_SECONDS,
    LONGEST_PAUSE_SECONDS,
    AgentPace,
    Look,
    Sent,
)

PACE = 100
BURST = int(PACE * BURST_SECONDS)


def pace(size: int = 0) -> AgentPace:
    made = AgentPace(PACE, size, pause_seconds=10)
    made.look([], 0)
    return made


def one(events: int, *, number: int = 1, size: int = 0, age: float = 0.5, tenant: str = "acme") -> Look:
    return Look("n0", number, tenant, Sent(events, size), age)


def test_who_keeps_to_its_rate_is_never_out_and_who_does_not_is_at_once() -> None:
    """Rule: the rate in the long run, two seconds of it at once; others do not notice."""
    told = pace()
    for second in range(1, 60):
        assert told.look([one(PACE * second, age=second)], second) == []
    assert told.look([one(PACE * 60 + BURST + 1, age=60), one(1, number=2, tenant="globex")], 60) == ["acme"]
    assert (told.pause("acme", 60), told.pause("acme", 69), told.pause("acme", 70)) == (10, 1, 0)
    assert told.pause("globex", 60) == 0


def test_many_connections_of_a_tenant_are_one_and_those_that_come_and_go_count_whole() -> None:
    """Rule: the limit is the tenant's, however it spreads what it sends."""
    told = pace()
    assert told.look([one(BURST // 2, number=n) for n in (1, 2)], 1) == []
    assert told.look([one(BURST // 2, number=n) for n in (3, 4, 5)], 2) == ["acme"]


def test_a_connection_told_twice_in_a_look_counts_once() -> None:
    """Rule: listed, and told of as it ended, with more by then or with less."""
    told = pace()
    assert told.look([one(BURST // 2), one(BURST), one(BURST - 9)], 1) == []
    assert told.look([one(BURST + 1, age=1.5)], 2) == []


def test_what_was_sent_before_the_first_look_is_not_of_now() -> None:
    """Rule: a process that starts, or a server that was too slow to answer, cuts nobody off for its past."""
    told = pace()
    old = one(1_000_000, age=3600)
    assert told.look([old], 1) == []
    assert told.look([], 2) == []
    assert told.look([one(1_000_001, age=3602)], 3) == []
    first = AgentPace(PACE, 0, pause_seconds=10)
    assert first.look([one(1_000_000, age=3600)], 50) == []


def test_bytes_are_limited_too_and_zero_is_no_limit() -> None:
    """Rule: few large ones fill a stream as well."""
    told = pace(size=1000)
    assert told.look([one(1, size=2001)], 1) == ["acme"]
    free = AgentPace(0, 0, pause_seconds=10)
    free.look([], 0)
    assert free.look([one(10_000_000, size=10**12)], 1) == []


def test_each_time_again_is_twice_as_long_until_it_is_forgiven() -> None:
    """Rule: ten seconds, twenty, … ten minutes; who kept to the rate for ten minutes starts anew."""
    told, now, pauses, total = pace(), 0.0, [], 0
    for _ in range(8):
        now += 1
        total += 10 * BURST
        assert told.look([one(total, age=now)], now) == ["acme"]
        pauses.append(told.pause("acme", now))
        now += pauses[-1]
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
    assert pauses[-1] == LONGEST_PAUSE_SECONDS
    now += FORGIVEN_AFTER_SECONDS + 1
    told.look([], now)
    assert told.look([one(10 * BURST, number=9)], now + 1) == ["acme"]
    assert told.pause("acme", now + 1) == 10


def test_while_it_is_out_nothing_adds_to_its_pause() -> None:
    """Rule: what a connection sent until it was cut is counted after, and is not a second offence."""
    told = pace()
    assert told.look([one(BURST * 2)], 1) == ["acme"]
    assert told.look([one(BURST * 9)], 2) == []
    assert told.pause("acme", 2) == 9
