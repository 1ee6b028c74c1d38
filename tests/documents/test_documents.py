"""What is documented is what the code says, and what is really stored is as the document says."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import msgspec
import nats
import pytest
from faststream.specification.asyncapi.v3_0_0.schema import ApplicationSchema
from rich.console import Console

from kgents_api.handlers import openapi
from kgents_api.handlers.intake import Limits
from kgents_devstack.demo import subscription
from kgents_devstack.documents import asyncapi, documents
from kgents_devstack.stack import EVERYTHING, Stack, StackOptions
from kgents_devstack.waiting import reached

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", sorted(documents()))
def test_a_document_is_as_the_code_says(name: str) -> None:
    """Rule: `python -m kgents_devstack documents` changes nothing."""
    assert (ROOT / name).read_text() == documents()[name], "run `python -m kgents_devstack documents`"


def test_documents_do_not_depend_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: neither the environment nor the host's name is in them."""
    before = documents()
    for name in ("NATS_SERVERS", "KGENTS_PORT", "KGENTS_INSTANCE", "DATABASE_URL"):
        monkeypatch.setenv(name, "nats://from.the.environment:1" if "PORT" not in name else "9")
    assert documents() == before
    host = os.uname().nodename
    assert len(host) < 6 or not any(host in text for text in before.values())


def test_asyncapi_is_taken_by_somebody_elses_model_of_it() -> None:
    """Rule: FastStream's AsyncAPI 3 classes read it, and every reference leads somewhere."""
    described = asyncapi.document()
    ApplicationSchema.model_validate(described)

    def walk(node: Any) -> None:
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str):
                target: Any = described
                for part in reference.removeprefix("#/").split("/"):
                    assert part in target, reference
                    target = target[part]
            for child in node.values():
                walk(child)
        elif isinstance(node, list):
            for child in node:
                walk(child)

    walk(described)
    for name, schema in described["components"]["schemas"].items():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema, name


def test_every_fact_of_the_contract_is_a_type_of_the_document() -> None:
    """Rule: docs/facts.md and the code tell the same types."""
    text = (ROOT / "docs" / "facts.md").read_text()
    # What Stripe tells and we do not is listed there under Stripe's names.
    text = re.sub(r"^### Not told$.*?(?=^## )", "", text, flags=re.MULTILINE | re.DOTALL)
    told: set[str] = set()
    for row in re.findall(r"^\| (`.+?) \|", text, re.MULTILINE):
        for name in re.findall(r"`([a-z_.]+)`", row):
            told.add(name if not name.startswith(".") else f"invoice{name}")
    types = {
        name for name in told if name.partition(".")[0] in ("payment", "invoice", "subscription", "customer")
    }
    assert types == set(asyncapi.fact_types())


def test_every_variable_of_the_services_is_in_operations() -> None:
    """Rule: what a settings class reads is documented, and the README names none that is not."""
    text = documents()["docs/operations.md"]
    known = set(re.findall(r"^\| `([A-Z0-9_]+)` \|", text, re.MULTILINE))
    readme = set(re.findall(r"\bKGENTS_[A-Z_]+\b", (ROOT / "README.md").read_text()))
    assert readme - known <= {"KGENTS_TEST_BACKEND"}


def test_the_contract_s_page_fetches_nothing_from_elsewhere() -> None:
    """Rule: `/docs` works without the Internet."""
    page = openapi._page(openapi.document(Limits(1, 1, 1), {}))
    assert not re.findall(r"(?:src|href)=['\"]?(?:https?:)?//", page)
    assert "@import" not in page
    assert "url(" not in page


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Everything, after an event, garbage, and a subscription's life."""
    with Stack(tmp_path / "stack", StackOptions(services=EVERYTHING)) as running:
        httpx.post(
            f"{running.service('api').url}/v1/events",
            json={
                "specversion": "1.0",
                "id": "e1",
                "source": "a",
                "type": "llm.tokens",
                "data": {"tokens": 1},
            },
            headers={
                "authorization": f"Bearer {running.keys['acme']}",
                "content-type": "application/cloudevents+json",
            },
        ).raise_for_status()
        subscription.run(Console(file=StringIO()), running, random.Random(1))
        yield running


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_every_stored_message_is_as_the_document_says(stack: Stack) -> None:
    """Rule: each message of both streams fits its channel's schema, body and headers."""
    described = asyncapi.document()
    wanted = {"events", "stripe", "facts", "backups", "deadletters"}
    client = await nats.connect(stack.nats.url)
    stream = client.jetstream()
    await stream.publish("agentese.acme.garbage", b"\x00")
    seen: set[str] = set()

    async def is_complete() -> bool:
        for name in ("AGENTESE", "EVENTS"):
            last = (await stream.stream_info(name)).state.last_seq
            for sequence in range(1, last + 1):
                message = await stream.get_msg(name, sequence)
                if message.subject != "agentese.acme.garbage":
                    seen.add(check(described, message.subject, message.data, message.headers or {}))
        return seen >= wanted

    await reached(is_complete, state=lambda: seen)
    await client.close()


def check(described: dict[str, Any], subject: str, body: bytes | None, headers: dict[str, str]) -> str:
    """Which channel a message is of, having held it against that channel's schemas."""
    for name, channel in described["channels"].items():
        *most, last = channel["address"].split(".")
        pattern = r"\.".join(r"[^.]+" if part.startswith("{") else part for part in most)
        if not re.fullmatch(rf"{pattern}\.{'.+' if last.startswith('{') else last}", subject):
            continue
        message = described["components"]["messages"][name]
        schema = message["payload"]
        if "$ref" in schema:
            schema = described["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            jsonschema.validate(msgspec.json.decode(body or b"{}"), schema)
        known = message["headers"]["properties"]
        ours = {key for key in headers if not key.startswith(("Nats-Expected", "Nats-TTL"))}
        if name != "deadletters":  # they carry their original's headers too
            assert ours <= set(known) | {"content-type"}, (subject, ours)
        return name
    raise AssertionError(f"no channel describes {subject}")
