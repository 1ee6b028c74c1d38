"""The stand-in as a process of its own, for tests and the demo; what it does is in `app`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from kgents_devstack.servers.process import Server, free_port

CONTROL_SECONDS = 240.0


class OpenMeterStandIn(Server):
    """An OpenMeter on loopback.

    It keeps what it acknowledged when it is killed and started again, as OpenMeter would; `clear_events` and
    a new object start from nothing, unless it `keeps`.

    Args:
        token: The bearer token callers must present; None asks for nothing.
        meters_file: YAML with a list `meters`, the file that metering reads.
        dedupe_window_seconds: How long a key is remembered; None for ever.
        arithmetic: `exact`, or `float64` as OpenMeter sums unless configured otherwise.
        keeps: Start with what an earlier one left in this directory.
    """

    name = "openmeter"
    stop_seconds = 10.0

    def __init__(
        self,
        directory: Path,
        *,
        token: str | None = "om_for_loopback_only",
        meters_file: Path | None = None,
        dedupe_window_seconds: float | None = None,
        arithmetic: str = "exact",
        keeps: bool = False,
    ) -> None:
        super().__init__(directory)
        self.port = free_port()
        self.token = token or ""
        self._meters_file = meters_file
        self._dedupe_window_seconds = dedupe_window_seconds
        self._arithmetic = arithmetic
        self._has_started = keeps
        self._client: httpx.Client | None = None

    @property
    def url(self) -> str:
        """`http://127.0.0.1:<port>`, the base of v1; v3's is `<url>/api/v3`."""
        return f"http://127.0.0.1:{self.port}"

    def set_faults(self, **faults: object) -> dict[str, Any]:
        """Switch these faults on (`FaultSet` names them) and all others off; the switches that are on.

        Raises:
            ValueError: There is no such switch, or not so.
        """
        return self._control("PUT", "faults", faults)

    def clear_faults(self) -> None:
        """Switch all faults off."""
        self._control("DELETE", "faults")

    def faults(self) -> dict[str, Any]:
        """The switches that are on; counts have gone down by what fired."""
        return self._control("GET", "faults")

    def stats(self) -> dict[str, Any]:
        """requests, accepted, stored, unique, duplicates, rejected, by_status and more (`Statistics`)."""
        return self._control("GET", "stats")

    def events(self, *, source: str | None = None, id: str | None = None) -> list[dict[str, Any]]:  # noqa: A002 CloudEvents' name
        """What is stored, in the order it came, of one source or id or all; `time` in Unix seconds."""
        asked = {name: value for name, value in (("source", source), ("id", id)) if value is not None}
        found: list[dict[str, Any]] = []
        after: int | None = 0
        while after is not None:
            page = self._control("GET", "events", query={**asked, "after": str(after)})
            found += page["events"]
            after = page["next"]
        return found

    def clear_events(self) -> None:
        """Forget all events, all keys and all counts."""
        self._control("DELETE", "events")

    def _control(
        self, method: str, name: str, document: object = None, query: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        answer = self._http.request(method, f"/_control/{name}", params=query, json=document)
        if answer.status_code == httpx.codes.BAD_REQUEST:
            raise ValueError(answer.json()["detail"])
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    @property
    def _http(self) -> httpx.Client:
        """One client for its whole life: making one costs more than what it is asked here."""
        if self._client is None:
            self._client = httpx.Client(base_url=self.url, timeout=CONTROL_SECONDS, trust_env=False)
        return self._client

    @property
    def _journal(self) -> Path:
        return self.directory / "events.journal"

    def _prepare(self) -> None:
        if not self._has_started:
            self._journal.unlink(missing_ok=True)
            self._has_started = True

    def _command(self) -> Sequence[str]:
        command = [sys.executable, "-m", "kgents_devstack.openmeter", "--port", str(self.port)]
        command += ["--journal", str(self._journal), "--arithmetic", self._arithmetic]
        if self.token:
            command += ["--token", self.token]
        if self._meters_file is not None:
            command += ["--meters", str(self._meters_file.absolute())]
        if self._dedupe_window_seconds is not None:
            command += ["--dedupe-window-seconds", str(self._dedupe_window_seconds)]
        return command

    def _is_ready(self) -> bool:
        try:
            return self._http.get("/healthz", timeout=2).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False
