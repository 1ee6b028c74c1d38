"""Where the runbooks are; one place to change when they are published elsewhere."""

from __future__ import annotations

# A reserved name: replace it in the rendered files where you publish docs/runbooks (README.md says how).
BASE_URL = "https://runbooks.kgents.example"


def link(group: str, section: str = "") -> str:
    """The address of a section of the runbook `group`, e.g. `link("door", "ApiLatencyHigh")`."""
    return f"{BASE_URL}/{group}.md" + (f"#{section.lower()}" if section else "")
