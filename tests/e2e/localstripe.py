"""localstripe, a stand-in for Stripe that nobody here wrote, as a process of its own on loopback.

It is GPL: it is run, never imported. By itself it listens on every interface and keeps its state in one file
for the whole machine: its process is started so that it listens on 127.0.0.1 and writes where it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import httpx

from kgents_devstack.servers.process import Server, free_port

KEY = "sk_test_loopback_only"
_ON_LOOPBACK = """
import builtins, runpy, socket
bind, open_ = socket.socket.bind, builtins.open
socket.socket.bind = lambda self, address: bind(self, ("::ffff:127.0.0.1", *address[1:]))
builtins.open = lambda name, *rest, **more: open_(
    "localstripe.pickle" if name == "/tmp/localstripe.pickle" else name, *rest, **more
)
runpy.run_module("localstripe", run_name="__main__", alter_sys=True)
"""


class LocalStripe(Server):
    """One server; what it knew is gone once it stops."""

    name = "localstripe"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`, for `STRIPE_API_BASE`."""
        return f"http://127.0.0.1:{self.port}"

    def register(self, url: str, secret: str, *, name: str = "door") -> None:
        """Send its events there from now on; it does so once, a second after they happened."""
        answer = httpx.post(f"{self.url}/_config/webhooks/{name}", json={"url": url, "secret": secret})
        answer.raise_for_status()

    def _command(self) -> Sequence[str]:
        return [sys.executable, "-c", _ON_LOOPBACK, "--from-scratch", "--port", str(self.port)]
