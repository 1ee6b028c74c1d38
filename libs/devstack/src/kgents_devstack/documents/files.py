"""Which file is made of what; `python -m kgents_devstack documents` writes them, a test compares."""

from __future__ import annotations

import json

from kgents_devstack.documents import asyncapi, messages, operations


def documents() -> dict[str, str]:
    """Path below the project's root to text."""
    described = asyncapi.document()
    return {
        "docs/asyncapi.json": json.dumps(described, indent=2, ensure_ascii=False) + "\n",
        "docs/messages.md": messages.page(described),
        "docs/operations.md": operations.page(),
    }
