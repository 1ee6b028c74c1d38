"""How fast the server stores is measured on a stream of its own, and nothing of it stays."""

from __future__ import annotations

import pytest
from tests.backup.streams import STREAM, make_stream

from kgents_backup.operations import pace
from kgents_backup.sources.verbatim import VerbatimClient
from kgents_common.streams import request


async def test_what_a_killed_measurement_left_is_removed_by_the_next(
    client: VerbatimClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a stream of its own kind alone, and none that may still be measured on."""
    monkeypatch.setattr(pace, "SECONDS", 0.05)
    await make_stream(client)
    left = {"name": "kgents-pace-0badcafe", "subjects": ["kgents.pace.0badcafe"], "storage": "file"}
    await request(client, f"STREAM.CREATE.{left['name']}", left)
    await pace.measure(client)
    assert sorted((await request(client, "STREAM.NAMES"))["streams"]) == [STREAM, left["name"]]
    monkeypatch.setattr(pace, "LONGEST_NANOSECONDS", 0)
    await pace.measure(client)
    assert (await request(client, "STREAM.NAMES"))["streams"] == [STREAM]
