"""`python -m kgents_observability render`: write the rules and dashboards that are code; `check` compares."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kgents_observability.rendering import HOME, rendered


def main() -> int:
    """Write, or tell what differs; 1 where something does."""
    parser = argparse.ArgumentParser(prog="kgents-observability", description=__doc__)
    parser.add_argument("command", choices=("render", "check"))
    parser.add_argument("--home", type=Path, default=HOME, help="the folder deploy/observability")
    arguments = parser.parse_args()
    stale = []
    for name, text in rendered().items():
        path = arguments.home / name
        if not path.exists() or path.read_text() != text:
            stale.append(name)
            if arguments.command == "render":
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    for name in stale:
        print(name)
    return int(bool(stale) and arguments.command == "check")


if __name__ == "__main__":
    sys.exit(main())
