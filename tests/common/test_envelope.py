"""The envelope is read strictly and its identity is frozen."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kgents_common import envelope
from kgents_common.errors import EnvelopeError

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def event(**changes: object) -> bytes:
    """A good event with some attributes replaced; None removes one."""
    attributes: dict[str, object] = {
        "specversion": "1.0",
        "id": "e1",
        "source": "agents/a1",
        "type": "llm.tokens",
        "time": "2026-11-23T11:59:00Z",
        "data": {"tokens": 7},
        **changes,
    }
    return msgspec.json.encode({k: v for k, v in attributes.items() if v is not None})


def read(body: bytes) -> envelope.Envelope:
    return envelope.read(body, tenant="acme", now=NOW)


def fields(error: pytest.ExceptionInfo[EnvelopeError]) -> list[str]:
    return [violation.field for violation in error.value.violations]


def test_an_event_gets_the_tenant_of_its_credentials() -> None:
    """Rule: the subject is set at the door and never trusted from the body (design, section 2)."""
    found = read(event())
    assert found.tenant == "acme"
    assert msgspec.json.decode(found.body)["subject"] == "acme"
    assert found.subject == "agentese.acme.llm.tokens"


def test_a_complete_event_is_published_byte_for_byte() -> None:
    """Rule: what the producer wrote, extensions and number spelling included, is not rewritten."""
    body = event(subject="acme", region="eu")[:-1] + b',"x":1.50}'
    assert read(body).body == body


def test_a_missing_time_is_stamped_and_marked() -> None:
    """Rule: a stamped time is not the producer's, and says so."""
    found = msgspec.json.decode(read(event(time=None)).body)
    assert found["time"] == "2026-11-23T12:00:00Z"
    assert found[envelope.TIME_ORIGIN] == "received"


def test_the_same_event_without_a_time_sent_twice_is_the_same_payload() -> None:
    """Rule: a resend must be a duplicate, not a conflict, although the door stamps another time (P1)."""
    first = envelope.read(event(time=None), tenant="acme", now=NOW)
    again = envelope.read(event(time=None), tenant="acme", now=NOW + timedelta(minutes=3))
    assert first.time != again.time
    assert first.payload_hash() == again.payload_hash()


def test_reading_a_published_body_again_changes_nothing() -> None:
    """Rule: the worker that reads a body from the stream sees the event the door saw."""
    first = read(event(time=None, subject=None))
    again = envelope.read(first.body, tenant="acme", now=NOW + timedelta(hours=1))
    assert (again.body, again.key, again.payload_hash()) == (first.body, first.key, first.payload_hash())
    assert again.time == first.time


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"specversion": None}, "specversion"),
        ({"specversion": "0.3"}, "specversion"),
        ({"id": None}, "id"),
        ({"id": ""}, "id"),
        ({"id": 7}, "id"),
        ({"id": "a\x00b"}, "id"),
        ({"id": "x" * 513}, "id"),
        ({"source": None}, "source"),
        ({"source": "x" * 1025}, "source"),
        ({"type": None}, "type"),
        ({"type": "llm tokens"}, "type"),
        ({"type": "llm.*"}, "type"),
        ({"type": "llm.>"}, "type"),
        ({"type": ".llm"}, "type"),
        ({"type": "llm..tokens"}, "type"),
        ({"type": "x" * 256}, "type"),
        ({"time": "yesterday"}, "time"),
        ({"time": "2026-11-23T12:00:00"}, "time"),
        ({"time": "2026-11-23T12:05:01Z"}, "time"),
        ({"time": "9999-12-31T23:59:59-12:00"}, "time"),
        ({"time": "0001-01-01T00:00:00+14:00"}, "time"),
        ({"time": "1969-12-31T23:59:59Z"}, "time"),
        ({"data": [1]}, "data"),
        ({"data": "text"}, "data"),
        ({"data": 5}, "data"),
        ({"data_base64": "AA=="}, "data_base64"),
        ({"datacontenttype": "text/xml"}, "datacontenttype"),
        ({"Upper": "x"}, "Upper"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object], field: str) -> None:
    """Rule: every refusal names the field."""
    with pytest.raises(EnvelopeError) as error:
        read(event(**change))
    assert fields(error) == [field]
    assert error.value.status == 400


def test_every_wrong_field_is_named_at_once() -> None:
    """Rule: a caller learns all that is wrong from one answer."""
    with pytest.raises(EnvelopeError) as error:
        read(event(id=None, type="a b", time="x"))
    assert fields(error) == ["id", "type", "time"]


@pytest.mark.parametrize(
    "data",
    [
        b'{"n":1e400}',
        b'{"n":' + b"[" * 33 + b"]" * 33 + b"}",
        b'{"n":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    ],
)
def test_numbers_out_of_range_and_deep_nesting_are_refused(data: bytes) -> None:
    """Rule: what no consumer can hold is refused at the door."""
    with pytest.raises(EnvelopeError):
        read(event(data=None)[:-1] + b',"data":' + data + b"}")


def test_a_foreign_subject_is_forbidden() -> None:
    """Rule: a tenant writes only itself (P8); where that is the only fault, the answer is 403."""
    with pytest.raises(EnvelopeError) as error:
        read(event(subject="globex"))
    assert (fields(error), error.value.status) == (["subject"], 403)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b'{"id":"\xff"}'])
def test_a_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    """Rule: bad input gets a clear error."""
    with pytest.raises(EnvelopeError):
        read(body)


def test_a_batch_is_all_or_nothing_and_names_the_place() -> None:
    """Rule: `[3].subject` names the field of event 3."""
    good = event().decode()
    with pytest.raises(EnvelopeError) as error:
        envelope.read_batch(
            f"[{good},{event(id=None).decode()},{event(subject='globex').decode()}]".encode(),
            tenant="acme",
            now=NOW,
            limit=10,
        )
    assert fields(error) == ["[1].id", "[2].subject"]
    assert error.value.status == 400


def test_a_batch_beyond_the_limit_is_too_large() -> None:
    """Rule: the batch limit is a 413."""
    with pytest.raises(EnvelopeError) as error:
        envelope.read_batch(b"[" + event() + b"," + event(id="2") + b"]", tenant="acme", now=NOW, limit=1)
    assert error.value.status == 413


def test_binary_mode_is_the_same_event() -> None:
    """Rule: one event has one identity, however HTTP carried it (CloudEvents HTTP binding 3.1)."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "e1",
        "ce-source": "agents/a1",
        "ce-type": "llm.tokens",
        "ce-time": "2026-11-23T11:59:00Z",
        "content-type": "application/json",
    }
    binary = envelope.read_binary(headers, b'{"tokens":7}', tenant="acme", now=NOW)
    structured = read(event())
    assert binary.key == structured.key
    assert binary.payload_hash() == structured.payload_hash()


BINARY = {
    "ce-specversion": "1.0",
    "ce-id": "e1",
    "ce-source": "agents/a1",
    "ce-type": "llm.tokens",
    "content-type": "application/json",
}


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("p5q", "p5q"),
        ('"p5q"', "p5q"),
        ('"a \\"quoted\\" \\\\ word"', 'a "quoted" \\ word'),
        ('"k%20x"', "k x"),
        ("Euro%20%E2%82%AC%20%f0%9f%98%80", "Euro \u20ac \U0001f600"),
        ("100%", "100%"),
        ("a%2525", "a%25"),
        ('5"', '5"'),
    ],
)
def test_a_header_is_unquoted_and_decoded_once(header: str, value: str) -> None:
    """Rule: HTTP binding 3.1.3.2; the event is the one that structured mode would bring."""
    binary = envelope.read_binary({**BINARY, "ce-id": header}, b'{"tokens":7}', tenant="acme", now=NOW)
    assert binary.id == value
    assert binary.key == read(event(id=value)).key


@pytest.mark.parametrize("header", ["k%FE", "k%FF", "%ED%A0%80", "%C0%80", '"open', '"a"b"', "\xe9", "%00"])
def test_a_header_that_is_no_text_is_refused(header: str) -> None:
    """Rule: two different values never become one identity."""
    with pytest.raises(EnvelopeError) as error:
        envelope.read_binary({**BINARY, "ce-id": header}, b"{}", tenant="acme", now=NOW)
    assert fields(error) == ["id"]


@pytest.mark.parametrize(
    ("content_type", "is_taken"),
    [
        ("application/json; charset=utf-8", True),
        ('Application/JSON ; charset="UTF-8"', True),
        ("application/json;profile=x", True),
        ("application/json; charset=utf-16", False),
        ("text/plain", False),
    ],
)
def test_a_content_type_means_the_same_in_both_modes(content_type: str, is_taken: bool) -> None:
    """Rule: parameters are allowed, and JSON is UTF-8 (RFC 8259 section 8.1)."""
    for send in (
        lambda: read(event(datacontenttype=content_type)),
        lambda: envelope.read_binary({**BINARY, "content-type": content_type}, b"{}", tenant="acme", now=NOW),
    ):
        with contextlib.nullcontext() if is_taken else pytest.raises(EnvelopeError) as error:
            send()
        assert is_taken or fields(error) == ["datacontenttype"]


OF_OLD = [
    (b'"x":"\xff"', "x"),
    (rb'"x":{"y":"\u0000"}', "x"),
    (b'"x":1e999', "x"),
    (b'"x":1e-9999999999999999999', "x"),
    (rb'"data":{"a":"\u0000"}', "data"),
    (b'"data":{"a":' + b"9" * 400 + b"}", "data"),
    (b'"data":{"a":1e-1000000}', "data"),
]


@pytest.mark.parametrize(("member", "field"), OF_OLD)
def test_what_some_reader_cannot_hold_is_refused_wherever_it_is(member: bytes, field: str) -> None:
    """Rule: extensions are read by others as data is; the same rules hold for them."""
    body = event(**{"data": None} if field == "data" else {})[:-1] + b"," + member + b"}"
    with pytest.raises(EnvelopeError) as error:
        read(body)
    assert fields(error) == [field]


@pytest.mark.parametrize(("member", "field"), OF_OLD)
def test_what_a_door_took_before_is_still_counted(member: bytes, field: str) -> None:
    """Rule: what a door of its time acknowledged is never set aside for a new rule."""
    body = event(**{"data": None} if field == "data" else {})[:-1] + b"," + member + b"}"
    found = envelope.read(body, tenant="acme", now=NOW, as_stored=True)
    assert len(found.payload_hash()) == 16


def test_a_time_is_cut_where_the_digest_has_it_rounded() -> None:
    """Rule: 10:59:59.9999996 is within its hour; the digest stays what it was (P2)."""
    found = read(event(time="2026-11-23T10:59:59.9999996Z"))
    assert found.time == datetime(2026, 11, 23, 10, 59, 59, 999999, UTC)
    assert found.payload_hash().hex() == "db90eba358f93c13ba87b37505456e23"


@pytest.mark.parametrize("time", ["2026-10-31T23:59:60Z", "2026-10-31T23:59:59." + "9" * 12 + "Z"])
def test_a_time_that_releases_before_did_not_read_is_published_as_they_do(time: str) -> None:
    """Rule: during a rolling update the ledger may be a release behind the door."""
    found = read(event(time=time))
    assert msgspec.json.decode(found.body)["time"] == "2026-10-31T23:59:59.999999Z"
    again = envelope.read(found.body, tenant="acme", now=NOW)
    assert (again.time, again.payload_hash()) == (found.time, found.payload_hash())
    direct = envelope.read(event(time=time, subject="acme"), tenant="acme", now=NOW, as_stored=True)
    assert direct.payload_hash() == found.payload_hash()


def test_the_order_of_members_does_not_make_another_payload() -> None:
    """Rule: JSON objects have no order."""
    one = read(event(data=None)[:-1] + b',"data":{"a":1,"b":{"c":2,"d":3}}}')
    two = read(event(data=None)[:-1] + b',"data":{"b":{"d":3,"c":2},"a":1}}')
    other = read(event(data=None)[:-1] + b',"data":{"b":{"d":3,"c":2},"a":2}}')
    assert one.payload_hash() == two.payload_hash() != other.payload_hash()


def test_the_identity_is_frozen() -> None:
    """Rule: changing the identity re-bills everything; these digests must never change."""
    assert envelope.identity("acme", "agents/a1", "e1").hex() == "192cfa70eb7854a0007c4ddbf715293d"
    assert envelope.identity("", "", "").hex() == "5cf0479a381380026a05c1e7bc18bfbb"


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_different_names_have_different_identities(
    one: tuple[str, str, str], two: tuple[str, str, str]
) -> None:
    """Rule: parts are length-prefixed, so (`a`, `b-c`) and (`a-b`, `c`) never meet."""
    assume_utf8 = [all(not 0xD800 <= ord(c) <= 0xDFFF for c in part) for part in (*one, *two)]
    if all(assume_utf8):
        assert (envelope.identity(*one) == envelope.identity(*two)) == (one == two)


@given(st.binary(max_size=300))
def test_no_body_crashes_the_parser(body: bytes) -> None:
    """Rule: whatever is sent, the answer is an event or a refusal."""
    for send in (
        lambda: envelope.read(body, tenant="acme", now=NOW),
        lambda: envelope.read_batch(body, tenant="acme", now=NOW, limit=10),
        lambda: envelope.read_binary({"ce-id": "1"}, body, tenant="acme", now=NOW),
    ):
        with contextlib.suppress(EnvelopeError):
            send()
