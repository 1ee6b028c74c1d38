"""The stand-in as a process: what it prints, what it survives, and who may control it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kgents_devstack.openmeter.process import OpenMeterStandIn
from kgents_devstack.servers import StartError

pytest_plugins = ["kgents_devstack.openmeter.fixtures"]

METERS = """
meters:
  - slug: tokens
    eventType: llm.tokens
    aggregation: SUM
    valueProperty: $.tokens
    eventFrom: 2026-01-01T00:00:00Z
"""


@pytest.fixture
def own(tmp_path: Path) -> Iterator[OpenMeterStandIn]:
    """A stand-in for this test alone, with one meter from a file and no token."""
    (tmp_path / "meters.yaml").write_text(METERS)
    with OpenMeterStandIn(tmp_path / "own", token=None, meters_file=tmp_path / "meters.yaml") as server:
        yield server


def ingest(server: OpenMeterStandIn, count: int) -> None:
    """So many events, the same ones each time."""
    batch = [
        {
            "specversion": "1.0",
            "id": f"{n}",
            "source": "tests",
            "type": "llm.tokens",
            "subject": f"ünïcode-{n % 3}",
            "time": "2026-01-01T00:00:00Z",
            "data": {"tokens": n, "text": "line\nbreak"},
        }
        for n in range(count)
    ]
    headers = {"content-type": "application/json"}
    answer = httpx.post(
        f"{server.url}/api/v1/events", content=json.dumps(batch), headers=headers, trust_env=False
    )
    assert answer.status_code == 204


def test_it_says_one_line_and_no_more(own: OpenMeterStandIn) -> None:
    """The line that it is ready, whatever happens after it."""
    ingest(own, 3)
    own.set_faults(connection_reset=1, error_after=1)
    with pytest.raises(httpx.TransportError):
        ingest(own, 1)
    httpx.get(f"{own.url}/nothing", trust_env=False)

    assert own.log_path.read_text() == f"openmeter stand-in ready at {own.url}\n"


def test_its_meters_come_from_the_file(own: OpenMeterStandIn) -> None:
    """The file is the one that metering reads; moments in YAML are moments here."""
    ingest(own, 4)

    (meter,) = httpx.get(f"{own.url}/api/v1/meters", trust_env=False).json()
    value = httpx.get(f"{own.url}/api/v1/meters/tokens/query", trust_env=False).json()["data"][0]["value"]

    assert (meter["slug"], meter["eventFrom"], value) == ("tokens", "2026-01-01T00:00:00Z", 6)


def test_what_was_acknowledged_is_there_after_a_kill(own: OpenMeterStandIn) -> None:
    """An outage of OpenMeter does not lose what it had acknowledged; keys are remembered too."""
    ingest(own, 100)
    before = own.events()

    own.kill()
    with (own.directory / "events.journal").open("ab") as journal:
        journal.write(b'["half a li')
    own.start()
    after = own.events()
    ingest(own, 101)

    assert after == before
    assert (own.stats()["stored"], own.stats()["duplicates"]) == (101, 100)
    own.restart()
    assert own.stats()["stored"] == 101


def test_deleted_events_do_not_come_back(own: OpenMeterStandIn) -> None:
    """`clear_events` forgets events, keys and counts."""
    ingest(own, 10)
    own.clear_events()
    own.restart()
    ingest(own, 5)

    assert (own.stats()["stored"], own.stats()["requests"]) == (5, 1)


def test_a_meters_file_that_breaks_a_rule_keeps_it_from_starting(tmp_path: Path) -> None:
    """It says which meter and which rule."""
    path = tmp_path / "meters.yaml"
    path.write_text("meters: [{slug: a, eventType: t, aggregation: SUM}]")

    with pytest.raises(StartError, match=r"meters\[0\]: .*valueProperty: is required"):
        OpenMeterStandIn(tmp_path / "own", meters_file=path).start()


def test_an_unknown_path_or_method_is_a_problem_too(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """RFC 7807, as everything OpenMeter refuses."""
    answers = [openmeter_http.get("/api/v1/nothing"), openmeter_http.delete("/api/v1/events")]

    assert [answer.status_code for answer in answers] == [404, 405]
    assert {answer.headers["content-type"] for answer in answers} == {"application/problem+json"}


def test_events_can_be_looked_up_by_source_and_id(own: OpenMeterStandIn) -> None:
    """What a test asks most: is this event there, and how often."""
    ingest(own, 10)

    assert [item["data"]["tokens"] for item in own.events(source="tests", id="7")] == [7]
    assert own.events(source="other", id="7") == []
    assert len(own.events(source="tests")) == 10
