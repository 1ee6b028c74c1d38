"""A stack that stays begins anew what has ended, and listens where it listened before."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from kgents_devstack import ports
from kgents_devstack.keeper import LONGEST_REST_SECONDS, Keeper
from kgents_devstack.page.feed import Feed
from kgents_devstack.raw_nats import UNREADABLE_SUBJECTS, RawPublisher
from kgents_devstack.servers.process import Server, free_port


class Sleeper(Server):
    """Does nothing for an hour; or ends at once, with 3, where it is told to."""

    name = "sleeper"
    ends_at_once = False

    def _command(self) -> Sequence[str]:
        body = "raise SystemExit(3)" if self.ends_at_once else "import time; time.sleep(3600)"
        return [sys.executable, "-S", "-c", body]

    def _is_ready(self) -> bool:
        return True


def test_what_was_killed_is_begun_anew_and_what_was_stopped_is_not(tmp_path: Path) -> None:
    """Rule: a killed process comes back at once, with a line said; one that cannot stay, ever later."""
    said: list[str] = []
    now, begun = 100.0, 0

    def count() -> None:
        nonlocal begun
        begun += 1

    with Sleeper(tmp_path / "one") as sleeper:
        keeper = Keeper([sleeper], said.append, on_begun=count, clock=lambda: now)
        now += 60
        keeper.look()
        assert (begun, said) == (0, [])
        first = sleeper.pid
        sleeper._process.kill()  # type: ignore[union-attr]
        sleeper.wait(10)
        keeper.look()
        assert sleeper.pid != first
        assert (begun, said) == (1, ["sleeper has ended (SIGKILL): begun anew now"])
        sleeper.stop()
        keeper.look()
        assert begun == 1

        sleeper.ends_at_once = True
        sleeper.begin()
        rests = []
        for _ in range(8):
            sleeper.wait(10)
            keeper.look()
            before, tried = now, begun
            while begun == tried:
                now += 1
                keeper.look()
            rests.append(now - before)
        assert "sleeper has ended (exit code 3): begun anew in 2 s" in said
        assert rests == [1, 2, 4, 8, 16, 30, 30, 30]
        assert rests[-1] == LONGEST_REST_SECONDS


def test_ports_are_the_usual_ones_or_those_of_last_time(tmp_path: Path) -> None:
    """Rule: an address is the same from start to start; another than the usual is said, and kept."""
    said: list[str] = []
    wanted = {"api": free_port(), "nats": free_port()}
    assert ports.choose(tmp_path, said.append, wanted) == wanted
    assert said == []
    with socket.socket() as somebody:
        somebody.bind(("127.0.0.1", 0))
        somebody.listen()
        taken = {"api": somebody.getsockname()[1], "nats": wanted["nats"]}
        chosen = ports.choose(tmp_path, said.append, taken)
        assert chosen["nats"] == wanted["nats"]
        assert said == [f"port {taken['api']} is taken: api listens on {chosen['api']}"]
        assert ports.choose(tmp_path, said.append, taken) == chosen
    (tmp_path / ports.FILE).write_text('{"api": "no port"')
    assert ports.choose(tmp_path, said.append, wanted) == wanted


async def test_no_message_ends_the_pages_feed(nats_url: str) -> None:
    """Rule: what is no text is shown as well as it can be, and what comes after it, too."""
    feed = Feed()
    await feed.start(nats_url)
    try:
        async with RawPublisher(nats_url) as raw:
            for unreadable in UNREADABLE_SUBJECTS:
                raw.publish(b"agentese.acme." + unreadable, b"\xff", headers=b"N")
            raw.publish(b"agentese.acme.readable", b'{"id": "e1"}')
            await raw.settle()
            async with asyncio.timeout(60):
                async for item in feed.listen():
                    if item["what"] == "readable":
                        break
        assert feed.seen == len(UNREADABLE_SUBJECTS) + 1
    finally:
        await feed.stop()
