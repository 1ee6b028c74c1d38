"""Each fault does what its name says, as often as it was told to, and leaves the store as it promises."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import httpx
import pytest

from kgents_devstack.openmeter.process import OpenMeterStandIn
from kgents_devstack.waiting import until

pytest_plugins = ["kgents_devstack.openmeter.fixtures"]

BATCH = "application/cloudevents-batch+json"


def events(count: int, start: int = 0, **data: Any) -> list[dict[str, Any]]:
    """Valid events with ids of their own."""
    return [
        {
            "specversion": "1.0",
            "id": f"e-{start + number}",
            "source": "tests",
            "type": "llm.tokens",
            "subject": "acme",
            "data": {"n": start + number, **data},
        }
        for number in range(count)
    ]


def send(client: httpx.Client, batch: list[dict[str, Any]], **options: Any) -> httpx.Response:
    """The answer to a batch."""
    return client.post(
        "/api/v1/events", content=json.dumps(batch).encode(), headers={"content-type": BATCH}, **options
    )


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ({"too_many_requests": 1}, 429),
        ({"error_before": 1}, 503),
        ({"error_before": {"count": 1, "status": 502}}, 502),
        ({"error_before": {"count": 1, "status": 500}}, 500),
        ({"unauthorized": 1}, 401),
        ({"forbidden": 1}, 403),
        ({"not_found": 1}, 404),
    ],
)
def test_a_fault_before_ingestion_stores_nothing_and_ends_after_its_count(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, fault: dict[str, Any], status: int
) -> None:
    """The next call fails, the one after it does not."""
    openmeter.set_faults(**fault)

    failed = send(openmeter_http, events(3))
    stored = openmeter.stats()["stored"]
    passed = send(openmeter_http, events(3))

    assert (failed.status_code, stored) == (status, 0)
    assert (passed.status_code, openmeter.stats()["stored"]) == (204, 3)
    assert openmeter.stats()["by_status"] == {"204": 1, str(status): 1}


def test_too_many_requests_says_when_to_come_back(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """Retry-After in whole seconds."""
    openmeter.set_faults(too_many_requests={"count": 1, "retry_after_seconds": 7})

    answer = send(openmeter_http, events(1))

    assert answer.headers["retry-after"] == "7"
    assert answer.json()["title"] == "Too Many Requests"


def test_a_bad_gateway_does_not_speak_json(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """What answers 502 is a proxy; a client that parses every error as JSON breaks here."""
    openmeter.set_faults(error_before={"count": 1, "status": 502})

    answer = send(openmeter_http, events(1))

    assert answer.headers["content-type"].startswith("text/html")


def test_an_error_after_a_part_keeps_the_first_events(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """A 5xx may be partial: the retry is what completes it, and deduplication what keeps it right."""
    openmeter.set_faults(error_after_partial={"count": 1, "fraction": 0.3})

    failed = send(openmeter_http, events(10))
    kept = [item["id"] for item in openmeter.events()]
    retried = send(openmeter_http, events(10))

    assert (failed.status_code, kept) == (500, ["e-0", "e-1", "e-2"])
    assert retried.status_code == 204
    assert (openmeter.stats()["unique"], openmeter.stats()["duplicates"]) == (10, 3)


def test_an_error_after_everything_was_stored(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """The caller cannot know; a 500 says nothing of what happened."""
    openmeter.set_faults(error_after=1)

    answer = send(openmeter_http, events(5))

    assert answer.status_code == 500
    assert "detail" not in answer.json()
    assert openmeter.stats()["unique"] == 5


def test_an_answer_that_never_comes_after_everything_was_stored(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """The connection is reset where the 204 should have been."""
    openmeter.set_faults(error_after={"count": 1, "close": True})

    with pytest.raises(httpx.TransportError):
        send(openmeter_http, events(5))

    assert openmeter.stats()["unique"] == 5
    assert openmeter.stats()["by_status"] == {"0": 1}


def test_a_reset_connection_stores_nothing(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """As when a load balancer gives up before the request arrives."""
    openmeter.set_faults(connection_reset=True)

    for _ in range(3):
        with pytest.raises(httpx.TransportError):
            send(openmeter_http, events(5))
    openmeter.clear_faults()

    assert openmeter.stats()["stored"] == 0
    assert send(openmeter_http, events(5)).status_code == 204


def test_one_poisoned_event_refuses_its_batch(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """400 is for the whole request, which is what makes bisecting safe."""
    openmeter.set_faults(reject_one=True)
    poisoned = [*events(3), *events(1, start=3, poison=True)]

    refused = send(openmeter_http, poisoned)
    passed = send(openmeter_http, poisoned[:3])

    assert refused.status_code == 400
    assert "e-3" in refused.json()["detail"]
    assert passed.status_code == 204
    assert (openmeter.stats()["unique"], openmeter.stats()["rejected"]) == (3, 4)


@pytest.mark.parametrize("fault", [{"id": "e-1"}, {"marker": '"n": 1'}])
def test_an_event_can_be_refused_by_its_id_or_by_a_marker(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, fault: dict[str, str]
) -> None:
    """The counts of a fault that looks at events go down when it finds one, not before."""
    openmeter.set_faults(reject_one={**fault, "count": 1})

    answers = [send(openmeter_http, batch).status_code for batch in (events(1), events(2), events(2))]

    assert answers == [204, 400, 204]


def test_a_batch_above_the_limit_is_too_large(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """413 for more events than the limit, nothing ingested; half of them pass."""
    openmeter.set_faults(payload_too_large=10)

    answers = [send(openmeter_http, batch).status_code for batch in (events(11), events(10))]

    assert answers == [413, 204]
    assert openmeter.stats()["unique"] == 10


def test_a_204_can_be_a_lie(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """openmeter#4964, #5005: 204 promises nothing durable; reconciliation is what finds it."""
    openmeter.set_faults(drop_after_204=1)

    lied = send(openmeter_http, events(4))
    told = send(openmeter_http, events(4, start=4))

    assert (lied.status_code, told.status_code) == (204, 204)
    assert (openmeter.stats()["dropped"], openmeter.stats()["unique"]) == (4, 4)


def test_a_hanging_request_is_stored_though_nobody_waits_for_it(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """A client's time-out says nothing of what the server does."""
    openmeter.set_faults(hang_seconds={"seconds": 1.0, "count": 1})

    with pytest.raises(httpx.ReadTimeout):
        send(openmeter_http, events(5), timeout=0.2)
    stored_at_once = openmeter.stats()["stored"]
    until(lambda: openmeter.stats()["stored"] >= 5)

    assert (stored_at_once, openmeter.stats()["stored"]) == (0, 5)


@pytest.mark.parametrize(("stored", "count"), [("before", 5), ("never", 0)])
def test_a_hanging_request_can_be_stored_before_or_never(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client, stored: str, count: int
) -> None:
    """Both look the same to the one who hangs up."""
    openmeter.set_faults(hang_seconds={"seconds": 0.6, "stored": stored, "count": 1})

    with pytest.raises(httpx.ReadTimeout):
        send(openmeter_http, events(5), timeout=0.3)

    assert openmeter.stats()["stored"] == count


def test_half_of_the_calls_fail_in_ways_that_may_be_tried_again(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """fail_rate mixes 429, 5xx before and after a part, and 504; retried, everything is there once."""
    openmeter.set_faults(
        fail_rate={"probability": 0.5, "hang_seconds": 0.01, "retry_after_seconds": 0}, seed=3
    )
    statuses: Counter[int] = Counter()

    for number in range(60):
        batch = events(10, start=10 * number)
        for _ in range(50):
            status = send(openmeter_http, batch).status_code
            statuses[status] += 1
            if status == 204:
                break

    assert statuses[204] == 60
    assert {429, 500, 503, 504} <= set(statuses)
    assert 30 <= sum(statuses.values()) - 60 <= 100
    assert openmeter.stats()["unique"] == 600
    assert openmeter.stats()["duplicates"] > 0


def test_the_same_seed_gives_the_same_faults(
    openmeter: OpenMeterStandIn, openmeter_http: httpx.Client
) -> None:
    """So that a failure found by chance can be looked at again."""
    runs = []
    for _ in range(2):
        openmeter.set_faults(error_before=0.5, too_many_requests=0.3, seed=11)
        runs.append([send(openmeter_http, events(1)).status_code for _ in range(30)])

    assert runs[0] == runs[1]
    assert {204, 429, 503} == set(runs[0])


def test_reads_fail_only_when_told_to(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """A fault is for ingest unless it says `on: reads` or `on: all`; the control plane never fails."""
    openmeter.set_faults(error_before=True)
    unharmed = openmeter_http.get("/api/v2/events").status_code
    openmeter.set_faults(error_before={"on": "reads"})
    statuses = (openmeter_http.get("/api/v1/meters").status_code, send(openmeter_http, events(1)).status_code)

    assert unharmed == 200
    assert statuses == (503, 204)
    assert openmeter.stats()["by_status"] == {"204": 1}


def test_switches_can_be_seen_and_put_back(openmeter: OpenMeterStandIn, openmeter_http: httpx.Client) -> None:
    """GET shows what is left of a count; another PUT replaces all; DELETE ends all."""
    openmeter.set_faults(error_before=3)
    send(openmeter_http, events(1))
    left = openmeter.faults()["error_before"]["count"]
    replaced = openmeter.set_faults(not_found=True)
    openmeter.clear_faults()

    assert left == 2
    assert set(replaced) == {"not_found"}
    assert openmeter.faults() == {}
    assert send(openmeter_http, events(1)).status_code == 204


@pytest.mark.parametrize(
    "fault",
    [{"eror_before": 1}, {"error_before": 1.5}, {"error_before": "often"}, {"error_before": {"status": 200}}],
)
def test_a_switch_that_is_none_is_refused(openmeter: OpenMeterStandIn, fault: dict[str, Any]) -> None:
    """A fault that was misspelt must not look like a system that survives it."""
    with pytest.raises(ValueError, match="faults"):
        openmeter.set_faults(**fault)
