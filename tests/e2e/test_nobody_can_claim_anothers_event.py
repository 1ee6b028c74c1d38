"""What JetStream takes for a repeat is one: neither a stranger, nor an earlier release, nor a contradiction
within the duplicate window makes an event vanish or count twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgspec
import nats

from kgents_common import envelope

from .conftest import BATCH, System, make_event, run


async def publish_under(url: str, subject: str, event: dict[str, Any], message_id: str) -> None:
    """Straight to NATS, claiming an id."""
    client = await nats.connect(url)
    await client.jetstream().publish(subject, msgspec.json.encode(event), headers={"Nats-Msg-Id": message_id})
    await client.close()


def key_of(event: dict[str, Any], tenant: str = "acme") -> str:
    """What the version before published an event under."""
    return envelope.identity(tenant, event["source"], event["id"]).hex()


def test_only_true_repeats_are_dropped_and_contradictions_are_kept(
    make_system: Callable[..., System],
) -> None:
    """Rule: the id on the wire is keyed and covers the payload; everything else is the ledger's to decide."""
    system = make_system()
    url = system.stack.nats.url
    claimed, upgraded, told_twice = make_event(), make_event(), make_event()
    mended = {**told_twice, "data": {**told_twice["data"], "tokens": 8}}

    # Globex, on its own subject, claims what acme is about to send.
    run(publish_under(url, "agentese.globex.llm.tokens", make_event(id="own"), key_of(claimed)))
    system.post(1, events=[claimed])
    # A door of the version before took it; the client, unanswered, sends it to a new one, and that again.
    run(publish_under(url, "agentese.acme.llm.tokens", upgraded, key_of(upgraded)))
    system.post(1, events=[upgraded])
    system.post(1, events=[upgraded])
    headers = {"authorization": f"Bearer {system.stack.keys['acme']}"}
    with httpx.Client(base_url=system.stack.service("api").url, headers=headers, timeout=30) as client:
        answer = client.post(
            "/v1/events",
            content=msgspec.json.encode([told_twice, mended, told_twice]),
            headers={"content-type": BATCH},
        )
    receipts = answer.json()["receipts"]
    assert [receipt.get("conflict", False) for receipt in receipts] == [False, True, False]
    assert [receipt["duplicate"] for receipt in receipts] == [False, False, True]
    system.settle()

    counts = system.ledger()
    assert (counts["accepted"], counts["duplicate"], counts["conflict"]) == (4, 1, 1)
    assert system.tokens_in_ledger() == 4 * 7
    listed = system.stack.command("metering", "conflicts", "list").stdout
    assert (listed.count("\n"), told_twice["id"] in listed) == (1, True)
    shown = system.stack.command("metering", "conflicts", "show", "1").stdout
    assert '"tokens":8' in shown
    assert '"tokens":7' in shown
    with httpx.Client(base_url=system.stack.service("metering").url, headers=headers) as client:
        [found] = client.get("/v1/conflicts").json()["conflicts"]
        whole = client.get(f"/v1/conflicts/{found['number']}").json()
        foreign = client.get(
            "/v1/conflicts", headers={"authorization": f"Bearer {system.stack.keys['globex']}"}
        ).json()
        wrong = client.get("/v1/conflicts?after=x")
    assert (found["id"], found["stream_sequence"]) == (told_twice["id"], receipts[1]["stream_sequence"])
    assert (whole["event"]["data"]["tokens"], whole["counted"]["data"]["tokens"]) == (8, 7)
    assert foreign == {"conflicts": []}
    assert wrong.status_code == 400
