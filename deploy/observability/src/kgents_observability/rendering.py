"""Everything here that is code, as the text of the files that are read; it writes nothing."""

from __future__ import annotations

from pathlib import Path

import yaml

from kgents_observability import slo
from kgents_observability.dashboards import BOARDS
from kgents_observability.dashboards.grafana import as_json

HOME = Path(__file__).resolve().parents[2]
_HEAD = (
    "# Rendered by `python -m kgents_observability render`; edit src/kgents_observability/slo.py instead.\n"
)


def rendered() -> dict[str, str]:
    """Path below deploy/observability to text."""
    boards = {f"dashboards/{board.uid}.json": as_json(board) for board in BOARDS}
    return {
        "prometheus/rules/slo.yaml": _HEAD + yaml.safe_dump(slo.rules(), sort_keys=False, width=110),
        **boards,
    }
