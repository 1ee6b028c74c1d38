"""The command: `python -m kgents_devstack.openmeter --port N --token T`; it serves until told to end."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import uvicorn

from kgents_devstack.openmeter.app import make_app
from kgents_devstack.openmeter.meters import Meters, load
from kgents_devstack.openmeter.protocol import CuttableProtocol
from kgents_devstack.openmeter.store import EventStore

SHUTDOWN_SECONDS = 1


class AnnouncedServer(uvicorn.Server):
    """Says where it listens, once it does."""

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen."""
        await super().startup(sockets)  # type: ignore[arg-type]
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"openmeter stand-in ready at http://{host}:{port}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m kgents_devstack.openmeter", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--token", help="the bearer token callers must present; without it none is asked for")
    parser.add_argument("--meters", type=Path, help="YAML with a list `meters`")
    parser.add_argument(
        "--dedupe-window-seconds", type=float, help="how long a key is remembered; default for ever"
    )
    parser.add_argument("--journal", type=Path, help="keep events in this file, and start with what is in it")
    parser.add_argument("--arithmetic", choices=("exact", "float64"), default="exact")
    given = parser.parse_args(arguments)
    try:
        meters = Meters() if given.meters is None else load(given.meters, datetime.now(UTC))
        store = EventStore(dedupe_window_seconds=given.dedupe_window_seconds, journal=given.journal)
    except (OSError, ValueError) as error:
        print(f"openmeter stand-in: {error}", file=sys.stderr)
        return 2
    app = make_app(store, meters, token=given.token, exact=given.arithmetic == "exact")
    gc.freeze()  # what was imported stays; only what requests leave is looked at
    config = uvicorn.Config(
        app,
        host=given.host,
        port=given.port,
        http=CuttableProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        backlog=512,
    )
    AnnouncedServer(config).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
