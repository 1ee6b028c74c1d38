"""The names of files in a store and what they say; it reads and writes none.

    lines/<stream>/<line>.json                                     how a line began
    snapshots/<stream>/<line>/<id>/<part>.part … manifest.json     the manifest is written last
    snapshots/<stream>/<line>/<id>/verified                        the whole was read back and found good
    segments/<stream>/<line>/<first>-<last>-<from ms>-<to ms>.seg
    databases/<id>/<schema>.<table>.<part>.part … manifest.json
    heads/<stream>/<line>/<last>-<last ms>                          how far the line was archived
    restores/<stream>.json                                         a restore under way
    restores/store                                                 what tells this store from every other
    locks/<name>.json

A listing alone is enough to plan a restore: a segment's name says which sequences and moments it covers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

_SEGMENT = re.compile(
    r"segments/(?P<stream>[^/]+)/(?P<line>[^/]+)/"
    r"(?P<first>\d{20})-(?P<last>\d{20})-(?P<first_ms>\d{13})-(?P<last_ms>\d{13})\.seg"
)
_SNAPSHOT = re.compile(r"snapshots/(?P<stream>[^/]+)/(?P<line>[^/]+)/(?P<id>[^/]+)/(?P<file>[^/]+)")
_IDENTITY = re.compile(r"(?P<at>\d{8}T\d{6}Z)-(?P<last>\d{20})-(?P<last_ms>\d{13})")
_LINE = re.compile(r"(?P<created>\d{8}T\d{12}Z)\.(?P<number>\d{3})")

_HEAD = re.compile(r"heads/(?P<stream>[^/]+)/(?P<line>[^/]+)/(?P<last>\d{20})-(?P<last_ms>\d{13})")

HEADS = "heads/"
MANIFEST = "manifest.json"
STORE_IDENTITY = "restores/store"
VERIFIED = "verified"


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One history of a stream: the server's creation time, and a number where two histories share it.

    A stream made anew counts from 1 again; one restored to an earlier moment continues differently than
    before. Both begin a new line, so that sequences of two histories never mix.
    """

    created: str
    number: int = 0

    def __str__(self) -> str:
        return f"{self.created}.{self.number:03}"

    @classmethod
    def of(cls, created: str, number: int = 0) -> Line:
        """From the `created` a server reports (RFC 3339, up to nanoseconds)."""
        whole, _, fraction = created.removesuffix("Z").partition(".")
        moment = datetime.fromisoformat(whole.partition("+")[0])
        return cls(f"{moment:%Y%m%dT%H%M%S}{fraction.partition('+')[0][:6]:0<6}Z", number)

    @classmethod
    def parse(cls, text: str) -> Line | None:
        """The line a name stands for; None where it is none."""
        found = _LINE.fullmatch(text)
        return cls(found["created"], int(found["number"])) if found else None


@dataclass(frozen=True, slots=True, order=True)
class SegmentName:
    """A segment: it accounts for every sequence from `first` to `last`, stored or gap.

    Attributes:
        first_ms: The first message's time, Unix milliseconds, rounded down.
        last_ms: The last message's time, rounded down.
    """

    stream: str
    line: Line
    first: int
    last: int
    first_ms: int
    last_ms: int
    size: int = 0

    @property
    def key(self) -> str:
        """Where it is stored."""
        return (
            f"{segments_prefix(self.stream, self.line)}"
            f"{self.first:020}-{self.last:020}-{self.first_ms:013}-{self.last_ms:013}.seg"
        )

    @classmethod
    def parse(cls, key: str, size: int = 0) -> SegmentName | None:
        """The segment stored under `key`; None where it is none."""
        found = _SEGMENT.fullmatch(key)
        line = Line.parse(found["line"]) if found else None
        if found is None or line is None:
            return None
        return cls(
            found["stream"],
            line,
            int(found["first"]),
            int(found["last"]),
            int(found["first_ms"]),
            int(found["last_ms"]),
            size,
        )


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """A snapshot: when it was taken, and the last sequence and message time in it."""

    stream: str
    line: Line
    at: str
    last: int
    last_ms: int

    @property
    def id(self) -> str:
        """Its name within its line; later snapshots sort later."""
        return f"{self.at}-{self.last:020}-{self.last_ms:013}"

    @property
    def prefix(self) -> str:
        """Where its files are."""
        return f"snapshots/{self.stream}/{self.line}/{self.id}/"

    @property
    def manifest_key(self) -> str:
        """Its manifest."""
        return self.prefix + MANIFEST

    @property
    def verified_key(self) -> str:
        """The mark that it was read back."""
        return self.prefix + VERIFIED

    @property
    def taken_at(self) -> datetime:
        """When it was taken."""
        return datetime.strptime(self.at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    def part_key(self, number: int) -> str:
        """Its part `number`, from 0."""
        return f"{self.prefix}{number:06}.part"

    @classmethod
    def parse(cls, key: str) -> tuple[SnapshotName, str] | None:
        """The snapshot a key belongs to, and which file of it; None where it is none."""
        found = _SNAPSHOT.fullmatch(key)
        if found is None:
            return None
        line, identity = Line.parse(found["line"]), _IDENTITY.fullmatch(found["id"])
        if line is None or identity is None:
            return None
        name = cls(found["stream"], line, identity["at"], int(identity["last"]), int(identity["last_ms"]))
        return name, found["file"]


def stamp(moment: datetime) -> str:
    """A moment as it stands in names: UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def segments_prefix(stream: str, line: Line) -> str:
    """Where a line's segments are."""
    return f"segments/{stream}/{line}/"


def line_key(stream: str, line: Line) -> str:
    """Where a line's beginning is described."""
    return f"lines/{stream}/{line}.json"


def heads_prefix(stream: str, line: Line) -> str:
    """Where it stands how far a line was archived."""
    return f"{HEADS}{stream}/{line}/"


def head_key(name: SegmentName) -> str:
    """The file that says that the line was archived to this segment's end."""
    return f"{heads_prefix(name.stream, name.line)}{name.last:020}-{name.last_ms:013}"


def parse_head(key: str) -> tuple[Line, int] | None:
    """The line and the sequence to which it was archived; None for another key."""
    found = _HEAD.fullmatch(key)
    line = Line.parse(found["line"]) if found else None
    return (line, int(found["last"])) if found and line else None


def database_prefix(identity: str) -> str:
    """Where one dump of the databases is."""
    return f"databases/{identity}/"


def lock_key(name: str) -> str:
    """Where a lock is."""
    return f"locks/{name}.json"
