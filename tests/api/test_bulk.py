"""Packed bodies and batches judged event by event: bounded, exact about places, and never half told."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta

import pytest
import zstandard

from kgents_api.handlers.unpacking import PackedError, UnpackedTooLargeError, unpack

from .conftest import Door, encoded, event

BATCH = "application/cloudevents-batch+json"
LENIENT = {"prefer": "handling=lenient"}


def zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(body)


PACK = {"gzip": gzip.compress, "zstd": zstd}


@pytest.mark.parametrize("encoding", PACK)
def test_a_packed_body_is_the_same_request(door: Door, encoding: str) -> None:
    """Rule: packed or not, the same event is the same event."""
    one = encoded(f"packed-{encoding}")
    answer = door.post(PACK[encoding](one), **{"content-encoding": encoding})
    assert answer.status_code == 202
    assert door.post(one).json()["receipts"][0]["duplicate"] is True
    batch = json.dumps([event(f"{encoding}-{n}") for n in range(500)]).encode()
    answer = door.post(PACK[encoding](batch), BATCH, **{"content-encoding": encoding.upper()})
    assert len(answer.json()["receipts"]) == 500


@pytest.mark.parametrize("encoding", PACK)
def test_what_is_packed_wrongly_is_400_and_a_bomb_413(door: Door, encoding: str) -> None:
    pack, headers = PACK[encoding], {"content-encoding": encoding}
    whole = pack(encoded("cut"))
    for wrong in (whole[:-3], b"not packed at all", whole + b"trailing", b""):
        assert door.post(wrong, **headers).status_code == 400
    bomb = pack(b"[" + b" " * (64 * 1024 * 1024) + b"]")
    assert len(bomb) < 100_000
    answer = door.post(bomb, BATCH, **headers)
    assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x"])
def test_another_encoding_is_415_and_told_which_are_taken(door: Door, encoding: str) -> None:
    answer = door.post(encoded("br"), **{"content-encoding": encoding})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, zstd")


@pytest.mark.parametrize("encoding", PACK)
def test_members_follow_one_another_and_the_limit_holds_for_all(encoding: str) -> None:
    """Rule: RFC 1952 section 2.2 and RFC 8878 section 3.1."""
    pack = PACK[encoding]
    packed = pack(b"a" * 1000) + pack(b"b" * 1000)
    assert unpack(packed, encoding, 2000) == b"a" * 1000 + b"b" * 1000
    with pytest.raises(UnpackedTooLargeError):
        unpack(packed, encoding, 1999)
    for end in range(1, len(packed)):
        try:
            unpack(packed[:end], encoding, 2000)
        except PackedError:
            continue
        assert end == len(pack(b"a" * 1000)), "cut, and taken for whole"


def lenient(door: Door, events: list[object]) -> dict[str, object]:
    answer = door.post(json.dumps(events), BATCH, **LENIENT)
    assert (answer.status_code, answer.headers["preference-applied"]) == (202, "handling=lenient"), (
        answer.text
    )
    found: dict[str, object] = answer.json()
    return found


def test_each_event_is_judged_by_itself_where_that_is_asked_for(door: Door) -> None:
    """Rule: a wrong clock costs its own events; each refusal names its place, its status and the rule."""
    ahead = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    before = door.stored()
    found = lenient(
        door,
        [
            event("l0"),
            event("l1", time=ahead),
            7,
            event("l3", subject="globex"),
            event("l4"),
            event("l5", data={"x": "y" * 600_000}),
        ],
    )
    assert [receipt["id"] for receipt in found["receipts"]] == ["l0", "l4"]  # type: ignore[attr-defined]
    refused = {one["index"]: one for one in found["refused"]}  # type: ignore[attr-defined]
    assert {index: one["status"] for index, one in refused.items()} == {1: 400, 2: 400, 3: 403, 5: 413}
    assert refused[1]["invalid_parameters"][0]["field"] == "[1].time"
    assert refused[5]["invalid_parameters"][0]["field"] == "[5]"
    assert door.stored() == before + 2


def test_without_being_asked_for_a_batch_is_taken_whole_or_not(door: Door) -> None:
    before = door.stored()
    events = json.dumps([event("w0"), event("w1", id=None)])
    for headers in ({}, {"prefer": "handling=strict"}, {"prefer": "respond-async"}):
        assert door.post(events, BATCH, **headers).status_code == 400
    assert door.stored() == before


def test_a_batch_of_nothing_good_is_refused(door: Door) -> None:
    answer = door.post(json.dumps([event("n0", id=None), 1]), BATCH, **LENIENT)
    assert answer.status_code == 400
    assert answer.json()["invalid_parameters"][0]["field"] == "[0].id"
    assert lenient(door, [event("n1")])["refused"] == []
    one = door.post(encoded("n2", id=None), **LENIENT)  # no batch: nothing to be lenient about
    assert one.status_code == 400
