"""The door for Stripe: stored before 200, once for each event id, and nothing that Stripe did not sign."""

from __future__ import annotations

import contextlib
import json
import socket
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import nats
import pytest
from stripe import WebhookSignature

from kgents_api.handlers.stripe_webhooks import MAX_CONCURRENCY
from kgents_common import keyring
from kgents_devstack.servers import NatsServer, apply_streams
from kgents_devstack.services import ServiceProcess
from kgents_devstack.waiting import until

SECRET = "whsec_0123456789abcdef"
PLANTED = "jane.planted@example.com"


def body_of(event_id: str | None = None, **changes: Any) -> bytes:
    """A snapshot event as Stripe renders it."""
    return json.dumps(
        {
            "id": event_id or f"evt_{uuid.uuid4().hex}",
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": int(time.time()),
            "type": "customer.subscription.updated",
            "livemode": False,
            "data": {"object": {"id": "sub_1", "object": "subscription", "email": PLANTED}},
            **changes,
        }
    ).encode()


def thin_of(event_id: str) -> bytes:
    """A thin event."""
    return json.dumps(
        {
            "id": event_id,
            "object": "v2.core.event",
            "type": "v1.customer.subscription.updated",
            "created": "2026-11-23T12:00:00.123Z",
            "livemode": False,
            "related_object": {"id": "sub_1", "type": "subscription", "url": "/v1/subscriptions/sub_1"},
        }
    ).encode()


def signature(body: bytes, secret: str = SECRET, *, age: int = 0) -> str:
    return str(
        WebhookSignature.generate_signature_header(body.decode(), secret, timestamp=int(time.time()) - age)
    )


@dataclass
class WebhookDoor:
    """The api as Stripe sees it."""

    service: ServiceProcess
    nats: NatsServer
    secrets_file: Path
    client: httpx.Client

    def post(self, body: bytes, header: str | None = None) -> httpx.Response:
        headers = {"stripe-signature": signature(body) if header is None else header}
        return self.client.post("/webhooks/stripe", content=body, headers=headers)

    async def stored(self, subject: str) -> list[Any]:
        client = await nats.connect(self.nats.url)
        stream = client.jetstream()
        info = await stream.stream_info("EVENTS", subjects_filter=subject)
        names = list(info.state.subjects or {})
        found = [await stream.get_last_msg("EVENTS", name) for name in names]
        counts = [(info.state.subjects or {})[name] for name in names]
        await client.close()
        assert all(count == 1 for count in counts)
        return found


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebhookDoor]:
    """One door for the module; its secrets are in a file."""
    directory = tmp_path_factory.mktemp("webhooks")
    keyring.write(directory / "keys.json", [keyring.mint("acme", keyring.TENANT_SCOPES)[1]])
    secrets = directory / "secrets"
    secrets.write_text(f"# endpoint one\nmain:{SECRET}\n")
    with NatsServer(directory / "nats") as server:
        apply_streams(server.url)
        environment = {
            "NATS_SERVERS": server.url,
            "KGENTS_KEYRING_FILE": str(directory / "keys.json"),
            "STRIPE_WEBHOOK_SECRETS_FILE": str(secrets),
        }
        with (
            ServiceProcess("api", directory / "api", environment) as service,
            httpx.Client(base_url=service.url, timeout=20) as client,
        ):
            yield WebhookDoor(service, server, secrets, client)


async def test_a_webhook_is_stored_verbatim_under_a_subject_of_its_own(door: WebhookDoor) -> None:
    """Rule: 200 once durable; the subject is a function of the event, the body is untouched."""
    body = body_of("evt_verbatim")
    answer = door.post(body)
    assert (answer.status_code, answer.json()) == (200, {"received": True})
    (message,) = await door.stored("events.stripe.test.customer_subscription_updated.evt_verbatim")
    assert message.data == body
    assert message.headers["ce-id"] == "evt_verbatim"
    assert message.headers["Stripe-Api-Version"] == "2026-10-28.endive"


async def test_a_thin_event_is_stored_too(door: WebhookDoor) -> None:
    """Rule: both shapes from day one."""
    assert door.post(thin_of("evt_thin")).status_code == 200
    assert len(await door.stored("events.stripe.test.v1_customer_subscription_updated.evt_thin")) == 1


async def test_the_same_event_again_is_200_and_not_stored_again(door: WebhookDoor) -> None:
    """Rule: Stripe retries for days; a duplicate is told by its subject, not by a window of minutes."""
    body = body_of("evt_again")
    assert [door.post(body).status_code for _ in range(3)] == [200, 200, 200]
    assert len(await door.stored("events.stripe.*.*.evt_again")) == 1


@pytest.mark.parametrize(
    "header",
    ["", "garbage", "t=,v1=", "t=1,v0=00", "v1=" + "a" * 64, "t=1,v1=" + "\u00e9" * 64, "t=-5,v1=" + "a" * 64,
     "t=99999999999999999999,v1=" + "a" * 64, "t=1," + "v1=" + "a" * 64 + "," * 5000],
)  # fmt: skip
def test_what_does_not_prove_itself_is_400(door: WebhookDoor, header: str) -> None:
    """Rule: whatever the header is, 400 and never 500."""
    raw = [("stripe-signature", header.encode("latin-1"))]
    answer = door.client.post("/webhooks/stripe", content=body_of(), headers=raw)
    assert answer.status_code == 400


def test_a_webhook_from_another_time_is_400(door: WebhookDoor) -> None:
    """Rule: recency both ways."""
    body = body_of()
    assert door.post(body, signature(body, age=400)).status_code == 400
    assert door.post(body, signature(body, age=-400)).status_code == 400


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"{", b"\xff\xfe", b'{"id":"evt_1","object":"charge"}', body_of("evt.*.>"),
     body_of(type="a b"), body_of(created="soon"), body_of(created=10**18), b"[" * 100_000],
)  # fmt: skip
def test_signed_but_no_event_is_400(door: WebhookDoor, body: bytes) -> None:
    """Rule: what is stored can be read."""
    import hashlib
    import hmac

    at = str(int(time.time()))
    signed = hmac.new(SECRET.encode(), at.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert door.post(body, f"t={at},v1={signed}").status_code == 400


def test_a_large_body_is_413_and_a_290_kb_event_is_not(door: WebhookDoor) -> None:
    """Rule: 512 KiB, also chunked."""
    large = body_of(data={"object": {"id": "in_1", "lines": "x" * 290_000}})
    assert door.post(large).status_code == 200
    huge = body_of(data={"object": {"id": "in_1", "lines": "x" * 600_000}})
    assert door.post(huge).status_code == 413
    chunks = (huge[start : start + 4096] for start in range(0, len(huge), 4096))
    answer = door.client.post(
        "/webhooks/stripe", content=chunks, headers={"stripe-signature": signature(huge)}
    )
    assert answer.status_code == 413


def test_a_slash_at_the_end_is_no_redirect(door: WebhookDoor) -> None:
    """Rule: Stripe takes a redirect for a failure: an endpoint with a slash works as one without."""
    body = body_of("evt_slash")
    answer = door.client.post(
        "/webhooks/stripe/", content=body, headers={"stripe-signature": signature(body)}
    )
    assert (answer.status_code, answer.json()) == (200, {"received": True})


def test_of_two_signature_headers_the_last_counts(door: WebhookDoor) -> None:
    """Rule: Stripe sends one; a proxy that adds another decides nothing by being first."""
    body = body_of("evt_two_headers")
    good, bad = signature(body), "t=1,v1=" + "a" * 64

    def post(*signatures: str) -> int:
        headers = [("content-type", "application/json"), *(("stripe-signature", s) for s in signatures)]
        return door.client.post("/webhooks/stripe", content=body, headers=headers).status_code

    assert post(good, bad) == 400
    assert post(bad, good) == 200


def test_another_method_is_405(door: WebhookDoor) -> None:
    """Rule: POST alone; a redirect would be a failure to Stripe."""
    assert door.client.get("/webhooks/stripe").status_code == 405


def test_a_secret_is_rotated_without_a_restart(door: WebhookDoor) -> None:
    """Rule: several secrets, reloaded; a removed one is refused; a bad edit keeps the good ones."""
    before = door.secrets_file.read_text()
    newer = "whsec_fedcba9876543210"

    def status(secret: str) -> int:
        while True:
            body = body_of()
            answered = door.post(body, signature(body, secret)).status_code
            if answered != httpx.codes.SERVICE_UNAVAILABLE:  # the stream was slow, and Stripe sends again
                return answered

    def becomes(secret: str, wanted: int) -> None:
        until(lambda: status(secret) == wanted)

    try:
        door.secrets_file.write_text(f"{before}new:{newer}\n")
        becomes(newer, 200)
        assert status(SECRET) == 200
        door.secrets_file.write_text("not a secret\n")
        time.sleep(1.2)
        assert status(SECRET) == 200
        door.secrets_file.write_text(f"new:{newer}\n")
        becomes(SECRET, 400)
        assert status(newer) == 200
    finally:
        door.secrets_file.write_text(before)
    becomes(SECRET, 200)


def test_only_failures_are_limited(door: WebhookDoor) -> None:
    """Rule: an address that fails too often is told 429; what Stripe signed from there is still taken."""
    statuses = [door.post(body_of(), "t=1,v1=" + "0" * 64).status_code for _ in range(130)]
    assert statuses[-1] == 429
    assert set(statuses) <= {400, 429}
    assert door.post(body_of()).status_code == 200


def test_neither_bodies_nor_secrets_are_logged_or_measured(door: WebhookDoor) -> None:
    """Rule: nothing personal and no secret in a log line or metric, of what is taken and what is refused."""
    body = body_of()
    assert PLANTED in body.decode()
    assert door.post(body).status_code == 200
    assert door.post(body, "t=1,v1=" + "0" * 64).status_code in (400, 429)
    text = door.service.log_path.read_text() + httpx.get(f"{door.service.operations_url}/metrics").text
    for planted in (PLANTED, SECRET, SECRET.removeprefix("whsec_"), "fedcba9876543210"):
        assert planted not in text
    assert 'kgents_stripe_webhook_signatures_total{secret="main"}' in text


def test_the_contract_names_the_door(door: WebhookDoor) -> None:
    """Rule: `/openapi.json` is true."""
    assert "/webhooks/stripe" in httpx.get(f"{door.service.operations_url}/openapi.json").json()["paths"]


def test_without_nats_it_is_503_and_the_retry_is_stored_once(tmp_path: Path, own_nats: NatsServer) -> None:
    """Rule: 200 means durable; not durable is 503 with Retry-After, and Stripe's retry mends it."""
    keyring.write(tmp_path / "keys.json", [keyring.mint("acme", keyring.TENANT_SCOPES)[1]])
    apply_streams(own_nats.url)
    environment = {
        "NATS_SERVERS": own_nats.url,
        "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json"),
        "STRIPE_WEBHOOK_SECRETS": SECRET,
    }
    body = body_of("evt_outage")
    with (
        ServiceProcess("api", tmp_path / "api", environment) as service,
        httpx.Client(base_url=service.url, timeout=20) as client,
    ):

        def post() -> httpx.Response:
            return client.post(
                "/webhooks/stripe", content=body, headers={"stripe-signature": signature(body)}
            )

        own_nats.kill()
        refused = post()
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")
        own_nats.start()

        def is_stored() -> bool:
            code = post().status_code
            assert code in (200, 503)
            return code == 200

        until(is_stored)
        assert post().status_code == 200
        state = httpx.get(f"{own_nats.monitor_url}/jsz?streams=true").json()
        details = state["account_details"][0]["stream_detail"]
    stored = next(s["state"]["messages"] for s in details if s["name"] == "EVENTS")
    assert stored == 1


@pytest.mark.parametrize("secrets", ["", "sk_live_wrong", "a b:whsec_0123456789"])
def test_it_refuses_to_start_with_secrets_that_are_none(tmp_path: Path, secrets: str) -> None:
    """Rule: an empty secret would verify forgeries."""
    import subprocess
    import sys

    keyring.write(tmp_path / "keys.json", [keyring.mint("acme", keyring.TENANT_SCOPES)[1]])
    environment = {
        "NATS_SERVERS": "nats://127.0.0.1:1",
        "KGENTS_KEYRING_FILE": str(tmp_path / "keys.json"),
        "STRIPE_WEBHOOK_SECRETS": secrets,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "kgents_api"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert "sk_live_wrong" not in ended.stderr


@pytest.mark.parametrize("is_plausible", [False, True], ids=["unsigned", "falsely-signed"])
def test_slow_strangers_do_not_close_the_door(door: WebhookDoor, is_plausible: bool) -> None:
    """Rule: what headers can refuse is refused by headers; what they cannot holds its bytes and no place."""
    signature = f"t={int(time.time())},v1={'a' * 64}"
    claim = f"stripe-signature: {signature}\r\nexpect: 100-continue\r\n" if is_plausible else ""
    head = f"POST /webhooks/stripe HTTP/1.1\r\nhost: a\r\n{claim}content-length: 100\r\n\r\n"
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", door.service.port), 30))
            for _ in range(MAX_CONCURRENCY + 10)
        ]
        for one in slow:
            one.sendall(head.encode())
        if not is_plausible:
            # At once, though the rest of the body never comes.
            assert {one.recv(12).split()[1] for one in slow} <= {b"400", b"429"}
        else:  # the door waits for the body of each
            assert {one.recv(12).split()[1] for one in slow} == {b"100"}
        assert door.post(body_of()).status_code == 200
