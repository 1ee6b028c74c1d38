"""The AsyncAPI document as a page for people; it adds nothing."""

from __future__ import annotations

import json
from typing import Any


def page(document: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        "# Messages",
        "",
        f"{document['info']['description']} The same for machines: [`asyncapi.json`](asyncapi.json), AsyncAPI"
        f" {document['asyncapi']}. `python -m kgents_devstack documents` writes both.",
        "",
        "| subject | what | sent by | read by |",
        "|---|---|---|---|",
    ]
    for name, channel in document["channels"].items():
        senders = [o["title"].removeprefix("Sent by ") for o in _of(document, name, "send")]
        readers = [_reader(o["title"]) for o in _of(document, name, "receive")]
        lines.append(
            f"| `{channel['address']}` | [{channel['title']}](#{name}) | {', '.join(senders)} | {', '.join(readers)} |"
        )
    for name, channel in document["channels"].items():
        message = document["components"]["messages"][name]
        lines += [
            "",
            f"## {name}",
            "",
            f"**{channel['title']}**, `{channel['address']}`. {channel['description']}",
            "",
        ]
        lines += [f"- `{token}`: {one['description']}" for token, one in channel["parameters"].items()]
        lines += [
            f"- {o['title']}. {o['description']}"
            for o in _of(document, name, "receive")
            if "description" in o
        ]
        lines += ["", f"Body: `{message['contentType']}`{_reference(message['payload'])}"]
        headers = message.get("headers", {}).get("properties", {})
        if headers:
            lines += ["", "| header | |", "|---|---|"]
            lines += [f"| `{header}` | {_said(schema)} |" for header, schema in headers.items()]
    lines += ["", "## Schemas"]
    for name, schema in document["components"]["schemas"].items():
        lines += ["", f"### {name}", "", "```json", json.dumps(schema, indent=2, ensure_ascii=False), "```"]
    return "\n".join(lines) + "\n"


def _of(document: dict[str, Any], channel: str, action: str) -> list[dict[str, Any]]:
    return [
        operation
        for operation in document["operations"].values()
        if operation["action"] == action and operation["channel"]["$ref"] == f"#/channels/{channel}"
    ]


def _reader(title: str) -> str:
    return title.removeprefix("Received by the durable consumer ").removeprefix("Also read: ")


def _reference(payload: dict[str, Any]) -> str:
    reference = payload.get("$ref", "")
    name = reference.rpartition("/")[2]
    return f", [{name}](#{name.lower()})." if name else f". {payload['description']}"


def _said(schema: dict[str, Any]) -> str:
    if "description" in schema:
        return str(schema["description"])
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    return f"`{schema['const']}`" if "const" in schema else schema.get("format", "text")
