"""A restore under way: its record, and the marks by which everybody knows its streams; no I/O.

The record is kept in the store and, as long as it concerns them, in the metadata of the streams themselves,
so that a restore can be gone on with or undone although one of the two is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from kgents_backup.model.documents import Ancestor, ConsumerRecord
from kgents_common.streams import RESTORE_MARK

# On a stream that must be left alone: the record as JSON.
MARK = RESTORE_MARK
# On the copy of the stream as it was before a restore: that stream's name.
KEPT_OF = "kgents.kept_of"
# On a restored stream: which lines it goes on from, as JSON.
LINEAGE = "kgents.restored"
OUR_MARKS = (MARK, KEPT_OF, LINEAGE)
_CLOSED = ("kgents.restore.", "kgents.fenced.")
_KEPT = "-before-"


class Step(StrEnum):
    """How far a restore is; each is reached before it is recorded, but for `replacing`.

    `replacing` is recorded first: from then on the stream may be gone or half there.
    """

    BEGUN = "begun"
    FENCED = "fenced"
    ARCHIVED = "archived"
    KEPT = "kept"
    REPLACING = "replacing"
    FILLED = "filled"


class Filled(msgspec.Struct, frozen=True):
    """What stood behind the fence when it was read back and found good.

    Attributes:
        created: When the server made the stream.
    """

    created: str
    first_sequence: int
    last_sequence: int
    messages: int


class RestoreRecord(msgspec.Struct, frozen=True):
    """One restore of one stream.

    Attributes:
        kept: The name of the stream's copy as it was; empty where there was no stream.
        messages: What the stream held when it was fenced, and its last sequence; 0 where there was none.
        config: Its configuration before it was fenced.
        consumers: Its durable consumers then.
        store: The identity of the store whose restore it is; empty in one of an earlier release.
        line: The line that was asked for; empty for none.
        filled: Set with the step of that name; None in one of an earlier release.
    """

    stream: str
    token: str
    step: Step
    began_at: str
    owner: str
    until: str
    kept: str = ""
    messages: int = 0
    first_sequence: int = 0
    last_sequence: int = 0
    config: dict[str, Any] | None = None
    consumers: list[ConsumerRecord] = []
    store: str = ""
    line: str = ""
    filled: Filled | None = None

    @property
    def is_before_replacing(self) -> bool:
        """Whether the stream as it was is still there under its own name."""
        return self.step in (Step.BEGUN, Step.FENCED, Step.ARCHIVED, Step.KEPT)


class Lineage(msgspec.Struct, frozen=True):
    """Where a restored stream comes from: every line that was known then."""

    token: str
    ancestors: list[Ancestor]


def record_key(stream: str) -> str:
    """Where the record of a restore under way is stored."""
    return f"restores/{stream}.json"


def kept_name(stream: str, token: str) -> str:
    """The name of the copy of the stream as it was."""
    return f"{stream}{_KEPT}{token}"


def mark(config: Mapping[str, Any], record: RestoreRecord) -> dict[str, Any]:
    """The configuration with the record in its metadata."""
    metadata = {**(config.get("metadata") or {}), MARK: msgspec.json.encode(record).decode()}
    return {**config, "metadata": metadata}


def read_mark(config: Mapping[str, Any]) -> RestoreRecord | None:
    """The record in a stream's metadata; None for none that can be read."""
    text = (config.get("metadata") or {}).get(MARK)
    try:
        return msgspec.json.decode(text, type=RestoreRecord) if text else None
    except msgspec.MsgspecError:
        return None


def read_lineage(config: Mapping[str, Any]) -> Lineage | None:
    """Where a restored stream comes from; None for one that was never restored."""
    text = (config.get("metadata") or {}).get(LINEAGE)
    try:
        return msgspec.json.decode(text, type=Lineage) if text else None
    except msgspec.MsgspecError:
        return None


def with_lineage(config: Mapping[str, Any], token: str, ancestors: Sequence[Ancestor]) -> dict[str, Any]:
    """The configuration of a restored stream, which says where it comes from."""
    lineage = msgspec.json.encode(Lineage(token, list(ancestors))).decode()
    return {**config, "metadata": {**(config.get("metadata") or {}), LINEAGE: lineage}}


def is_closed(config: Mapping[str, Any]) -> bool:
    """Whether a stream is being restored, or was left closed by a restore of any release."""
    if MARK in (config.get("metadata") or {}):
        return True
    return any(str(s).startswith("kgents.restore.") for s in config.get("subjects") or ())


def is_left_half(config: Mapping[str, Any]) -> bool:
    """Whether a stream is what an interrupted restore beside the live system left: nobody else fills it."""
    return is_closed(config) and MARK not in (config.get("metadata") or {})


def is_of_a_fence(config: Mapping[str, Any]) -> bool:
    """Whether a configuration only held while publishers were kept out, or while a copy was taken back."""
    if _KEPT in str((config.get("mirror") or {}).get("name", "")):
        return True
    return is_closed(config) or any(str(s).startswith(_CLOSED) for s in config.get("subjects") or ())


def fenced_live(config: Mapping[str, Any], record: RestoreRecord) -> dict[str, Any]:
    """The configuration of the stream as it was, closed to publishers; nothing in it expires meanwhile."""
    found = {k: v for k, v in config.items() if k not in ("subject_transform", "republish")}
    found |= {"subjects": [f"kgents.fenced.{record.stream}"], "max_age": 0}
    return mark(found, record)


def kept_config(live: Mapping[str, Any], record: RestoreRecord) -> dict[str, Any]:
    """The configuration of the copy: a mirror that takes as many messages as there are, and no more.

    On 2.10 it stays a mirror: without the bound it would go on with the restored stream's messages.
    """
    found: dict[str, Any] = {
        "name": record.kept,
        "description": f"{record.stream} as it was before the restore of {record.began_at}",
        "storage": live["storage"],
        "retention": "limits",
        "discard": "new",
        "max_msgs": max(1, record.messages),
        "num_replicas": live["num_replicas"],
        "allow_direct": True,
        "mirror": {"name": record.stream},
        "metadata": {KEPT_OF: record.stream},
    }
    if live.get("allow_msg_ttl"):
        found["allow_msg_ttl"] = True
    return mark(found, record)


def without_marks(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration without what a restore wrote into its metadata."""
    metadata = {k: v for k, v in (config.get("metadata") or {}).items() if k not in OUR_MARKS}
    return {**config, "metadata": metadata}
