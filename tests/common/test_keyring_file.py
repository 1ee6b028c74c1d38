"""The keyring's file under hands: two commands at once, another owner, an earlier form, expiry and use."""

from __future__ import annotations

import json
import os
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kgents_api.handlers.commands import run_command
from kgents_common import keyring
from kgents_common.clock import ManualClock
from kgents_common.errors import ConfigurationError
from kgents_common.health import Status
from kgents_common.keyring import KeysUnavailableError, Uses, last_uses
from kgents_common.keyring.following import STALE_SECONDS

# A file as the release before wrote it.
OF_OLD = {
    "keys": [
        {
            "id": "key_0123456789abcdef",
            "sha256": keyring.digest("kg_of_old"),
            "tenant": "acme",
            "scopes": ["events:write", "usage:read"],
            "created_at": "2026-11-01T00:00:00Z",
        }
    ]
}

CREATE_B = ["keys", "create", "--tenant", "b", "--scopes", "events:read"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys.json"
    found.write_text(json.dumps(OF_OLD))
    return found


def listed(path: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert run_command(["keys", "list", "--file", str(path), *more]) == 0
    return capsys.readouterr().out


def test_two_commands_at_once_lose_nothing(path: Path) -> None:
    """Rule: each change waits for the one before it, so a revoked key stays revoked."""
    first_holds, second_waits = threading.Event(), threading.Event()

    def create() -> None:
        first_holds.wait()
        second_waits.set()
        assert (
            run_command(["keys", "create", "--tenant", "b", "--scopes", "events:read", "--file", str(path)])
            == 0
        )

    other = threading.Thread(target=create)
    other.start()
    with keyring.edit(path) as records:
        first_holds.set()
        second_waits.wait()
        records.clear()
    other.join()
    assert [record.tenant for record in keyring.load(path)] == ["b"]


def test_many_commands_at_once_all_count(path: Path) -> None:
    def create(n: int) -> None:
        with keyring.edit(path) as records:
            records.append(keyring.mint(f"t{n}", ["events:write"])[1])

    threads = [threading.Thread(target=create, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keyring.load(path)) == 21


def test_a_change_that_fails_changes_nothing(path: Path) -> None:
    before = path.read_bytes()

    def fails() -> None:
        with keyring.edit(path) as records:
            records.clear()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    assert path.read_bytes() == before
    assert {p.name for p in path.parent.iterdir()} == {"keys.json", "keys.json.lock"}


def test_mode_owner_and_link_stay(path: Path, tmp_path: Path) -> None:
    """Rule: a service that may read the file may read it after a command, too."""
    path.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(path)
    if os.geteuid() == 0:
        os.chown(path, 12345, 12345)
    before = path.stat()
    assert (
        run_command(["keys", "create", "--tenant", "b", "--scopes", "events:read", "--file", str(link)]) == 0
    )
    after = path.stat()
    assert link.is_symlink()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert len(keyring.load(path)) == 2


def test_who_cannot_give_it_back_does_not_write_it(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: a keyring that its services cannot read any more locks everybody out."""

    def refuses(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    before, stat = path.read_bytes(), Path.stat

    def of_another(self: Path, **named: bool) -> os.stat_result:
        found = list(stat(self, **named))
        found[4] += 1
        return os.stat_result(found)

    monkeypatch.setattr(os, "fchown", refuses)
    monkeypatch.setattr(Path, "stat", of_another)
    with pytest.raises(ConfigurationError, match="another user") as error:
        keyring.write(path, [])
    monkeypatch.undo()
    assert error.value.hint
    assert path.read_bytes() == before


def test_a_keyring_of_the_release_before_is_read_and_migrated(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: it works as it is; `keys migrate` writes today's form, and what keys may do does not change."""
    before = keyring.load(path)
    assert keyring.Keyring(path).find("kg_of_old") == before[0]
    assert run_command(["keys", "migrate", "--file", str(path)]) == 0
    document = json.loads(path.read_text())
    assert (document["version"], document["keys"]) == (2, OF_OLD["keys"])
    assert keyring.load(path) == before
    assert run_command(["keys", "migrate", "--file", str(path)]) == 0
    assert "key_0123456789abcdef  acme  made 2026-11-01 00:00  never ends" in listed(path, capsys)


def test_the_release_before_does_not_take_a_wide_key_for_a_tenants(path: Path) -> None:
    """Rule: during a rolling update a reader of `keys` alone finds there what it understands."""
    with keyring.edit(path) as records:
        records.append(keyring.mint(["acme", "globex"], ["events:write"])[1])
        records.append(keyring.mint("*", ["events:write"])[1])
    document = json.loads(path.read_text())
    assert [record["tenant"] for record in document["keys"]] == ["acme"]
    assert [record["tenants"] for record in document["wide_keys"]] == [["acme", "globex"], ["*"]]


def test_scopes_are_chosen(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: no key may do everything because nobody said what it is for."""
    with pytest.raises(SystemExit):
        run_command(["keys", "create", "--tenant", "b", "--file", str(path)])
    assert "--scopes" in capsys.readouterr().err
    assert run_command([*CREATE_B, "--file", str(path)]) == 0
    found = keyring.Keyring(path).find(capsys.readouterr().out.strip())
    assert found is not None
    assert (found.tenant, found.scopes, found.expires_at) == ("b", ("events:read",), None)


def test_a_key_is_made_with_its_end(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: after a span or at a moment, as it was asked for."""
    at = f"{datetime.now(UTC) + timedelta(days=3):%Y-%m-%dT%H:%M:%SZ}"
    for asked, earliest, latest in (
        (["--expires-in", "2h"], timedelta(hours=1), timedelta(hours=2)),
        (["--expires-at", at], timedelta(days=2), timedelta(days=3)),
    ):
        assert run_command([*CREATE_B, *asked, "--file", str(path)]) == 0
        found = keyring.Keyring(path).find(capsys.readouterr().out.strip())
        assert found is not None
        assert found.expires_at is not None
        assert earliest < found.expires_at - datetime.now(UTC) <= latest


def test_a_key_ends_by_itself(path: Path) -> None:
    """Rule: from its expiry on it is nobody's; nothing must be written for that."""
    clock = ManualClock(datetime(2026, 11, 25, tzinfo=UTC))
    ends = clock.now() + timedelta(hours=1)
    key, record = keyring.mint("acme", ["events:write"], expires_at=ends)
    keyring.write(path, [record])
    ring = keyring.Keyring(path, clock)
    clock.advance(timedelta(minutes=59, seconds=59))
    assert ring.find(key) == record
    clock.advance(timedelta(seconds=1))
    assert ring.find(key) is None
    assert ring.by_id(record.id) is None


def test_a_rotated_key_overlaps_its_successor(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: both are good until the overlap ends; the successor may do the same."""
    old = keyring.load(path)[0]
    assert run_command(["keys", "rotate", old.id, "--overlap", "2h", "--file", str(path)]) == 0
    key = capsys.readouterr().out.strip()
    ring = keyring.Keyring(path)
    new = ring.find(key)
    assert new is not None
    assert (new.tenant, new.scopes, new.expires_at) == (old.tenant, old.scopes, None)
    ended = ring.find("kg_of_old")
    assert ended is not None
    assert ended.expires_at is not None
    left = ended.expires_at - datetime.now(UTC)
    assert timedelta(hours=1) < left <= timedelta(hours=2)
    assert "ends " in listed(path, capsys)


def test_a_rotation_gives_no_key_more_than_it_had(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: the successor lives as long as the old one was made for, the old one no longer than it would
    have; one that has ended has no successor."""
    now = datetime.now(UTC)
    made = now - timedelta(days=29)
    _, soon = keyring.mint("acme", ["events:read"], now=made, expires_at=made + timedelta(days=30))
    _, over = keyring.mint("acme", ["events:read"], now=made, expires_at=now - timedelta(seconds=1))
    keyring.write(path, [soon, over])
    assert run_command(["keys", "rotate", soon.id, "--overlap", "7d", "--file", str(path)]) == 0
    new = keyring.Keyring(path).find(capsys.readouterr().out.strip())
    assert new is not None
    assert new.expires_at == new.created_at + timedelta(days=30)
    assert new.scopes == ("events:read",)
    assert keyring.load(path)[0] == soon
    assert run_command(["keys", "rotate", over.id, "--file", str(path)]) == 1
    assert len(keyring.load(path)) == 3


def test_who_cannot_read_it_for_minutes_lets_nobody_in(path: Path) -> None:
    """Rule: a key may have been revoked meanwhile; what is said is `try again`, not `unknown`."""
    clock = ManualClock()
    ring = keyring.Keyring(path, clock)
    path.rename(path.with_suffix(".away"))
    clock.advance(timedelta(seconds=STALE_SECONDS - 1))
    assert ring.find("kg_of_old") is not None
    assert ring.check().status is Status.DEGRADED
    clock.advance(timedelta(seconds=2))
    for ask in (lambda: ring.find("kg_of_old"), lambda: ring.find("kg_unknown"), lambda: ring.by_id("key_x")):
        with pytest.raises(KeysUnavailableError):
            ask()
    assert ring.check().status is Status.DOWN
    path.with_suffix(".away").rename(path)
    clock.advance(timedelta(seconds=1))
    assert ring.find("kg_of_old") is not None
    assert ring.check().status is Status.OK


def test_a_key_tells_when_it_was_last_used(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rule: the newest use that any process saw, to a minute."""
    directory = tmp_path / "uses"
    assert "used never" in listed(path, capsys, "--uses", str(directory))
    clock = ManualClock(datetime(2026, 11, 25, 12, tzinfo=UTC))
    rings = [keyring.Keyring(path, clock, Uses(directory, f"door/{n}", clock)) for n in range(2)]
    rings[0].find("kg_of_old")
    clock.advance(timedelta(minutes=5))
    rings[1].find("kg_of_old")
    clock.advance(timedelta(minutes=2))
    for ring in rings:
        ring.check()
    assert last_uses(directory) == {"key_0123456789abcdef": datetime(2026, 11, 25, 12, 5, tzinfo=UTC)}
    assert "used 2026-11-25 12:05" in listed(path, capsys, "--uses", str(directory))


def test_uses_that_cannot_be_kept_cost_nothing(path: Path, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("no directory")
    clock = ManualClock()
    ring = keyring.Keyring(path, clock, Uses(blocked, "door", clock))
    assert ring.find("kg_of_old") is not None
    clock.advance(timedelta(minutes=5))
    assert ring.find("kg_of_old") is not None
