"""API keys are stored hashed, and the file is followed while the process runs."""

from __future__ import annotations

import math
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest

from kgents_common import keyring
from kgents_common.clock import ManualClock
from kgents_common.errors import ConfigurationError


def test_a_minted_key_is_found_and_never_stored(tmp_path: Path) -> None:
    """Rule: keys are stored hashed (P8)."""
    key, record = keyring.mint("acme", ["events:write"])
    path = tmp_path / "keys.json"
    keyring.write(path, [record])
    found = keyring.Keyring(path).find(key)
    assert found is not None
    assert (found.tenant, found.scopes) == ("acme", ("events:write",))
    assert key not in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("presented", ["", "kg_", "kg_wrong", "kg_" + "x" * 500, "kg_\u00e9", "Bearer x"])
def test_an_unknown_key_is_nobody(tmp_path: Path, presented: str) -> None:
    """Rule: what is not a stored key finds nothing and harms nothing."""
    path = tmp_path / "keys.json"
    keyring.write(path, [keyring.mint("acme", keyring.TENANT_SCOPES)[1]])
    assert keyring.Keyring(path).find(presented) is None


def test_a_revoked_key_stops_and_a_new_one_works_without_a_restart(tmp_path: Path) -> None:
    """Rule: the file is read again when it changes."""
    path, clock = tmp_path / "keys.json", ManualClock()
    old, old_record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(path, [old_record])
    ring = keyring.Keyring(path, clock)
    new, new_record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(path, [new_record])
    clock.advance(timedelta(seconds=2))
    assert ring.find(old) is None
    assert ring.find(new) == new_record


def test_a_broken_edit_keeps_the_last_good_keyring(tmp_path: Path) -> None:
    """Rule: a slip of the editor locks nobody out."""
    path, clock = tmp_path / "keys.json", ManualClock()
    key, record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(path, [record])
    ring = keyring.Keyring(path, clock)
    path.write_text("{")
    clock.advance(timedelta(seconds=2))
    assert ring.find(key) == record


def test_a_missing_file_refuses_to_start_and_says_what_to_do(tmp_path: Path) -> None:
    """Rule: an operator's error carries its next step."""
    with pytest.raises(ConfigurationError) as error:
        keyring.Keyring(tmp_path / "none.json")
    assert error.value.hint


@pytest.mark.parametrize(("tenant", "scopes"), [("a b", []), ("a.b", []), ("", []), ("acme", ["root"])])
def test_a_tenant_or_scope_that_cannot_be_is_refused(tenant: str, scopes: list[str]) -> None:
    """Rule: a tenant is one NATS token."""
    with pytest.raises(ConfigurationError):
        keyring.mint(tenant, scopes)


@pytest.mark.parametrize("whose", ["acme", ["acme"], ["acme", "globex"]])
def test_what_concerns_every_tenant_is_no_key_of_some(whose: str | list[str]) -> None:
    """Rule: an operator's scope is minted for a key of every tenant alone; the error says how."""
    for scope in keyring.OPERATOR_SCOPES:
        with pytest.raises(ConfigurationError, match=scope) as error:
            keyring.mint(whose, ["usage:read", scope])
        assert "--every-tenant" in str(error.value.hint)
        assert keyring.mint("*", [scope])[1].is_every


def test_a_keyring_of_before_is_read_whatever_it_gave_away(tmp_path: Path) -> None:
    """Rule: a key that would not be made today does not take the others with it."""
    path = tmp_path / "keys.json"
    _, record = keyring.mint("acme", [])
    keyring.write(path, [msgspec.structs.replace(record, scopes=("meters:write", "usage:read"))])
    assert keyring.load(path)[0].scopes == ("meters:write", "usage:read")


def test_the_end_of_a_key_is_told_while_somebody_uses_it(tmp_path: Path) -> None:
    """Rule: the first to end of the keys used in the last day; a key nobody uses may end unnoticed."""
    path, clock = tmp_path / "keys.json", ManualClock()
    ends = [clock.now() + timedelta(days=days) for days in (3, 9, 30)]
    made = [keyring.mint("acme", keyring.TENANT_SCOPES, expires_at=at) for at in ends]
    lasting, lasting_record = keyring.mint("acme", keyring.TENANT_SCOPES)
    keyring.write(path, [*(record for _, record in made), lasting_record])
    ring = keyring.Keyring(path, clock)
    ring.find(lasting)
    assert ring.next_expiry() == math.inf
    ring.find(made[2][0])
    assert ring.by_id(made[1][1].id) is not None  # a session of that key
    assert ring.next_expiry() == ends[1].timestamp()
    clock.advance(timedelta(hours=25))
    ring.find(made[2][0])
    assert ring.next_expiry() == ends[2].timestamp()
    ring.find(made[0][0])
    assert ring.next_expiry() == ends[0].timestamp()
    clock.advance(timedelta(days=2))
    ring.find(made[0][0])  # over: it opens nothing, and rotating it helps nobody any more
    assert ring.next_expiry() == math.inf
