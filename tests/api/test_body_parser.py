"""Whatever bytes and headers come, `read_events` gives envelopes that can be stored and read, or refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kgents_api.handlers.intake import Limits, read_each, read_events
from kgents_api.handlers.refusal import Refused
from kgents_api.model.caller import Caller
from kgents_common import envelope
from kgents_common.envelope import Envelope

from .conftest import event

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
LIMITS = Limits(event_bytes=64 * 1024, batch_bytes=256 * 1024, batch_events=20)
CALLERS = [
    Caller("acme", frozenset({"events:write"}), "key_1"),
    Caller("acme", frozenset({"events:write"}), "session", agent="a1"),
]
KINDS = [
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
    "application/json",
    "Application/CloudEvents+JSON; charset=utf-8",
    "text/plain",
    "",
]
EXAMPLES = 200
MANY = 5_000

callers = st.sampled_from(CALLERS)
kinds = st.sampled_from(KINDS) | st.text(max_size=30)
header_text = st.text(st.characters(max_codepoint=255), max_size=40)


def outcome(headers: dict[str, str], body: bytes, caller: Caller = CALLERS[0]) -> list[Envelope] | Refused:
    """What became of a request; anything but envelopes or a refusal fails the test."""
    refused: Refused | None = None
    try:
        events = read_events(headers, body, caller=caller, now=NOW, limits=LIMITS)
    except Refused as refusal:
        refused = refusal
    if refused is not None:
        assert refused.response.status_code in (400, 403, 413, 415)
        json.loads(bytes(refused.response.body))
        return refused
    assert events
    for one in events:
        assert one.tenant == "acme"
        assert re.fullmatch(r"agentese\.acme(\.[A-Za-z0-9_-]+)+", one.subject)
        assert len(one.key) == len(one.payload_hash()) == 16
        assert len(one.body) <= LIMITS.event_bytes
        stored = json.loads(one.body.decode())  # by a reader that is not ours
        assert (stored["id"], stored["source"], stored["type"]) == (one.id, one.source, one.type)
        assert stored["subject"] == "acme"
        assert caller.agent is None or stored["agent"] == caller.agent
        json.dumps(stored).encode()
        again = envelope.read(one.body, tenant="acme", now=NOW, agent=caller.agent)
        assert (again.key, again.payload_hash()) == (one.key, one.payload_hash())
    return events


# JSON that Python's own encoder would not write: numbers beyond every type, names twice, broken escapes.
raw_scalars = st.sampled_from(
    [
        *("1e400", "-1e400", "1e-400", "9" * 400, "-0", "0.1e1", "01", "1.", "+1", "NaN", "Infinity", "-"),
        *(r'"\ud800"', r'"\udfff\ud800"', r'"\ud83d\ude00"', r'"\u0000"', '"\x00"', '"\x1f"', r'"\x"', '"'),
        *("true", "false", "null", "nul", "{}", "[]", "{", "]", '"acme"', '"1.0"', '"llm.tokens"', ""),
        *("[" * 40 + "]" * 40, "[" * 5000, '{"a":' * 200 + "1" + "}" * 200, '{"a":1,"a":2}', "\ud800"),
    ]
)
raw_json: st.SearchStrategy[str] = st.recursive(
    raw_scalars | st.text(max_size=8).map(json.dumps) | st.integers().map(str) | st.floats().map(str),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(raw_scalars | st.text(max_size=5).map(json.dumps), inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
        )
    ),
    max_leaves=8,
)
ATTRIBUTES = [
    *("specversion", "id", "source", "type", "subject", "time", "datacontenttype", "dataschema", "data"),
    *("data_base64", "agent", "timeorigin", "region", "Bad-Name", "", "\x00"),
]
TIMES = [
    "2026-11-24T11:00:00Z",
    "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:60+23:59",
    "2026-02-30T00:00:00-99:99",
]


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A good event with some of its members replaced, repeated, or preceded by others."""
    members = [(json.dumps(name), json.dumps(value)) for name, value in event("m").items()]
    for _ in range(draw(st.integers(0, 4))):
        name = json.dumps(draw(st.sampled_from(ATTRIBUTES) | st.text(max_size=70)))
        value = draw(raw_json | st.sampled_from(TIMES).map(json.dumps) | st.just(json.dumps("x" * 2000)))
        place = draw(st.integers(0, len(members)))
        if draw(st.booleans()) and place < len(members):
            members[place] = (members[place][0], value)
        else:
            members.insert(place, (name, value))
    return "{" + ",".join(f"{name}:{value}" for name, value in members) + "}"


bodies = st.one_of(
    st.binary(max_size=200),
    raw_json.map(lambda text: text.encode(errors="surrogatepass")),
    mutated().map(lambda text: text.encode(errors="surrogatepass")),
    st.lists(mutated(), max_size=25).map(lambda e: f"[{','.join(e)}]".encode(errors="surrogatepass")),
    st.tuples(mutated(), st.binary(max_size=4), st.integers(0, 400)).map(
        lambda parts: (lambda text: text[: parts[2]] + parts[1] + text[parts[2] :])(
            parts[0].encode(errors="surrogatepass")
        )
    ),
)


def arbitrary(kind: str, body: bytes, caller: Caller) -> None:
    outcome({"content-type": kind}, body, caller)


def binary_mode(kind: str, headers: dict[str, str], body: bytes, caller: Caller) -> None:
    good = {"ce-specversion": "1.0", "ce-id": "b", "ce-source": "s", "ce-type": "llm.tokens"}
    outcome({**good, **headers, "content-type": kind}, body, caller)


ce_names = st.sampled_from(ATTRIBUTES).map("ce-{}".format) | st.text(max_size=10).map("ce-{}".format)
ce_values = header_text | st.sampled_from(["%", "%0", "%00", "%ED%A0%80", "%FF", "%C3%A9", "acme", *TIMES])
FUZZ: list[tuple[Callable[..., None], dict[str, st.SearchStrategy[Any]]]] = [
    (arbitrary, {"kind": kinds, "body": bodies, "caller": callers}),
    (
        binary_mode,
        {
            "kind": st.sampled_from(["application/json", "", "application/json; x=y", *KINDS]),
            "headers": st.dictionaries(ce_names, ce_values, max_size=4),
            "body": st.one_of(bodies, st.just(b'{"tokens": 1}')),
            "caller": callers,
        },
    ),
]


@pytest.mark.parametrize(("check", "parts"), FUZZ, ids=[check.__name__ for check, _ in FUZZ])
def test_any_request_is_events_or_a_refusal(
    check: Callable[..., None], parts: dict[str, st.SearchStrategy[Any]]
) -> None:
    """Rule: no body and no header gets another exception out of the parser, or in what no reader can read."""
    settings(max_examples=EXAMPLES)(given(**parts)(check))()


@pytest.mark.long
@pytest.mark.parametrize(("check", "parts"), FUZZ, ids=[check.__name__ for check, _ in FUZZ])
def test_any_of_many_requests_is_events_or_a_refusal(
    check: Callable[..., None], parts: dict[str, st.SearchStrategy[Any]]
) -> None:
    settings(max_examples=MANY, database=None)(given(**parts)(check))()


def test_a_good_event_passes_the_same_check() -> None:
    """Rule: the fuzz above reaches what is stored, in each mode."""
    body = json.dumps(event("good")).encode()
    assert isinstance(outcome({"content-type": KINDS[0]}, body), list)
    assert isinstance(outcome({"content-type": KINDS[1]}, b"[" + body + b"]", CALLERS[1]), list)
    binary = {f"ce-{name}": value for name, value in event("b").items() if name != "data"}
    assert isinstance(outcome({**binary, "content-type": "application/json"}, b'{"a": 1}'), list)


def test_a_session_bound_to_its_sources_is_so_however_its_events_come() -> None:
    """Rule: alone, in a batch, as plain JSON, in headers, judged one by one: another's source is refused."""
    caller = Caller("acme", frozenset({"events:write"}), "session", agent="a1", sources=("agents/a1",))
    mine, foreign = event("b1", source="agents/a1"), event("b2", source="agents/a2")
    for kind in ("application/cloudevents+json", "application/json"):
        assert isinstance(outcome({"content-type": kind}, encoded(mine), caller), list)
        assert status_of({"content-type": kind}, encoded(foreign), caller) == 403
    for kind in ("application/cloudevents-batch+json", "application/json"):
        assert isinstance(outcome({"content-type": kind}, encoded([mine]), caller), list)
        assert status_of({"content-type": kind}, encoded([mine, foreign]), caller) == 403
    for source, status in (("agents/a1", 202), ("agents/a2", 403)):
        names = {"ce-specversion": "1.0", "ce-id": "b3", "ce-source": source, "ce-type": "t"}
        assert status_of({"content-type": "application/json", **names}, b"{}", caller) == status
    good, refused = read_each(encoded([mine, foreign]), caller=caller, now=NOW, limits=LIMITS)
    assert ([one.id for one in good], [one.index for one in refused]) == (["b1"], [1])


def encoded(found: object) -> bytes:
    return json.dumps(found).encode()


def status_of(headers: dict[str, str], body: bytes, caller: Caller) -> int:
    """The status of an answer; 202 for what is taken."""
    found = outcome(headers, body, caller)
    return found.response.status_code if isinstance(found, Refused) else 202
