"""Two restores of one server, from two backup directories: one owns the streams, the other is told so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.backup.commands import Commands
from tests.backup.streams import STREAM, add_consumer, archive, fill, make_stream, read_all

from kgents_backup.app import Backup
from kgents_backup.handlers.command.restoring import run_discard
from kgents_backup.handlers.command.surroundings import Arguments
from kgents_backup.model.faults import LockedError, ProtocolError, RefusedError, RestoringError
from kgents_backup.model.plan import Until
from kgents_backup.model.restoration import RestoreRecord, is_left_half, mark, read_lineage, record_key
from kgents_backup.operations import disaster
from kgents_backup.operations.disaster import Region, fencing
from kgents_backup.operations.restoring import (
    RestoreReport,
    carrying_out,
    journal,
    prepare,
    restore,
    verifying,
)
from kgents_backup.operations.restoring.transaction import Restoration, Wanted, closing, replacing
from kgents_backup.sinks import ownership
from kgents_backup.sinks.ownership import Ownership
from kgents_backup.sinks.store import DirectoryStore, Sealer, Vault
from kgents_backup.sinks.store.process import Process
from kgents_backup.sources.stream import stream_info
from kgents_backup.sources.verbatim import VerbatimClient, connected
from kgents_common.clock import SystemClock
from kgents_common.crash import CrashPoints
from kgents_common.errors import TransientError
from kgents_common.streams import request
from kgents_devstack.fixtures import remove_streams
from kgents_devstack.servers import NatsServer
from kgents_devstack.waiting import reached as until

CLOCK = SystemClock()
REPLACE = Wanted(STREAM, replace=True)


class Killed(BaseException):
    """What dying is here."""


def die() -> None:
    raise Killed


def restoration(client: VerbatimClient, vault: Vault, *, crash: str | None = None) -> Restoration:
    return Restoration(client, vault, vault, CLOCK, "test", crash=CrashPoints(crash, die))


async def bodies(client: VerbatimClient) -> list[bytes]:
    return [m.body for m in await read_all(client)]


@pytest.fixture(autouse=True)
async def _no_leftovers(client: VerbatimClient) -> AsyncIterator[None]:
    yield
    await remove_streams(client)


@pytest.fixture
def other_vault(tmp_path: Path) -> Vault:
    """Another backup directory, which archived the same stream."""
    return Vault(DirectoryStore(tmp_path / "other"), Sealer())


async def archived(client: VerbatimClient, *vaults: Vault) -> list[bytes]:
    await make_stream(client)
    await add_consumer(client)
    await fill(client, 60)
    for vault in vaults:
        await archive(client, vault)
    return await bodies(client)


@pytest.mark.parametrize(
    "is_there",
    [pytest.param(False, id="a lost stream", marks=[pytest.mark.long]), pytest.param(True, id="a live one")],
)
async def test_one_restores_and_the_other_is_refused(
    each_client: VerbatimClient, vault: Vault, other_vault: Vault, is_there: bool
) -> None:
    """Rule: whoever restores owns the server's streams alone, wherever the other runs: what is open in the
    end is whole, and the one that did nothing says whose restore it met."""
    whole = await archived(each_client, vault, other_vault)
    if not is_there:
        await each_client.jetstream().delete_stream(STREAM)
    ended = await asyncio.gather(
        restoration(each_client, vault).bring_back(REPLACE),
        restoration(each_client, other_vault).bring_back(REPLACE),
        return_exceptions=True,
    )
    assert sorted(type(one).__name__ for one in ended) == ["LockedError", "RestoreReport"]
    report = next(one for one in ended if isinstance(one, RestoreReport))
    assert (report.messages, report.missing) == (60, 0)
    assert await bodies(each_client) == whole
    for left in (vault, other_vault):
        assert await journal.find(each_client, left, STREAM) is None


async def test_while_it_is_held_nobody_else_takes_back_discards_or_promotes(
    each_client: VerbatimClient, vault: Vault
) -> None:
    """Rule: whatever changes the server's streams asks the same owner, and names it; the owner itself may
    enter again; afterwards all is as before."""

    async def give() -> VerbatimClient:
        return each_client

    region = Region(give, give, "primary", "dr", (STREAM,))
    backup = cast("Backup", SimpleNamespace(client=give, owner="second", clock=CLOCK))
    arguments = Arguments(stream=None, dry_run=False)
    since = r"a restore of this server's streams is under way since \d{4}-\d\d-\d\d .* UTC, by first"
    async with Ownership(each_client, "first", CLOCK) as held, held:
        for asked in (
            restoration(each_client, vault).bring_back(REPLACE),
            restoration(each_client, vault).undo(STREAM),
            run_discard(backup, arguments),
            disaster.promote(region, STREAM, [], archive=None, scratch=vault, clock=CLOCK),
            disaster.fail_back(region, STREAM, scratch=vault, clock=CLOCK),
        ):
            with pytest.raises(LockedError, match=since):
                await asked
        held.check()
        async with Ownership(each_client, "second", CLOCK, place="into-LOOK"):
            pass
    assert await run_discard(backup, arguments) == 0
    with pytest.raises(LockedError, match="was lost"):
        held.check()


async def test_who_was_killed_owns_nothing_soon_and_no_hand_is_needed(
    client: VerbatimClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the server forgets an owner that does not renew, by its own clock; one of this machine whose
    process is gone is followed at once; one that is late and lives must do nothing more."""
    monkeypatch.setattr(ownership, "LEASE", timedelta(seconds=2))
    killed = Ownership(client, "killed elsewhere", CLOCK)
    await killed.__aenter__()
    assert killed._renewing is not None
    first = killed._sequence

    async def is_renewed() -> bool:
        return killed._sequence > first

    await until(is_renewed)
    killed.check()
    killed._renewing.cancel()
    second = Ownership(client, "second", CLOCK)
    with pytest.raises(LockedError, match="by killed elsewhere"):
        await second.__aenter__()

    async def is_ours() -> bool:
        try:
            await second.__aenter__()
        except LockedError:
            return False
        return True

    await until(is_ours)
    with pytest.raises(LockedError, match="was lost"):
        killed.check()
    await killed.__aexit__(None, None, None)
    second.check()
    await second.__aexit__(None, None, None)

    own = Process.own()
    dead = Process(own.host, own.boot, own.space, own.number, "another")
    with monkeypatch.context() as patch:
        patch.setattr(Process, "own", classmethod(lambda _: dead))
        late = Ownership(client, "late", CLOCK)
    async with late, Ownership(client, "third", CLOCK) as third:

        async def is_noticed() -> bool:
            return not late.is_held

        await until(is_noticed)
        third.check()


@pytest.mark.parametrize("is_followed", [False, pytest.param(True, marks=[pytest.mark.long])])
async def test_who_stood_still_owns_on_where_nobody_came(
    client: VerbatimClient, monkeypatch: pytest.MonkeyPatch, is_followed: bool
) -> None:
    """Rule: a restore whose server, or whose machine, stood still for longer than the lease goes on, unless
    another owned the streams meanwhile, even if that is gone again."""
    monkeypatch.setattr(ownership, "LEASE", timedelta(seconds=1))
    async with Ownership(client, "first", CLOCK) as held:
        assert held._renewing is not None
        held._renewing.cancel()

        async def is_forgotten() -> bool:
            return await held._last() is None

        await until(is_forgotten)
        if is_followed:
            async with Ownership(client, "second", CLOCK):
                pass
        held._held_until = 0.0
        held._renewing = asyncio.create_task(held._renew())

        async def is_known() -> bool:
            assert held._renewing is not None
            return held.is_held or held._renewing.done()

        await until(is_known)
        assert held.is_held != is_followed


@pytest.mark.long
async def test_a_server_that_restarts_knows_the_owner(
    own_nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a restart in the middle hands the streams to nobody else; a server that lost everything forgets
    the owner, too, who does nothing more."""
    monkeypatch.setattr(ownership, "LEASE", timedelta(seconds=4))
    options = {"servers": own_nats.url, "reconnect_time_wait": 0.05, "max_reconnect_attempts": -1}
    async with connected(options) as client, Ownership(client, "first", CLOCK) as held:
        await asyncio.to_thread(own_nats.stop)
        await asyncio.to_thread(own_nats.start)

        async def is_refused() -> bool:
            try:
                async with Ownership(client, "second", CLOCK):
                    return False
            except LockedError:
                return True
            except TransientError:
                return False

        await until(is_refused)
        await asyncio.sleep(4)
        held.check()  # renewed since
        assert await is_refused()
        await request(client, f"STREAM.DELETE.{ownership.STREAM}")

        async def is_noticed() -> bool:
            return not held.is_held

        await until(is_noticed)
        assert not await is_refused()


@pytest.mark.long
async def test_two_commands_from_two_directories(
    each_nats_server: NatsServer,
    each_client: VerbatimClient,
    vault: Vault,
    other_vault: Vault,
    tmp_path: Path,
) -> None:
    """Rule: as processes: one restores, one says whose it met; killed, its own command goes on at once, and
    from the other directory it is refused with the next step."""
    whole = await archived(each_client, vault, other_vault)
    one = Commands(each_nats_server.url, tmp_path / "backup")
    other = Commands(each_nats_server.url, tmp_path / "other")
    command = "restore --stream AGENTESE --replace"
    ended = await asyncio.gather(one(command), other(command))
    # As the processes come up: one is refused, or begins when the other is done.
    assert sorted(code for code, _ in ended) in ([0, 0], [0, 1])
    assert await bodies(each_client) == whole
    async with Ownership(each_client, "somebody", CLOCK):
        code, said = await other(command)
    assert code == 1
    assert "error: a restore of this server's streams is under way since" in said
    assert "by somebody\nhint: wait for it" in said
    # The one that was refused archives what is there now, as its service would.
    await archive(each_client, vault)
    code, _ = await one(command, KGENTS_CRASH_AT="restore.deleted")
    assert code not in (0, 1)
    code, said = await other(command)
    assert (code, "is of another backup directory" in said) == (1, True)
    code, said = await one(command)
    assert code == 0, said
    assert await bodies(each_client) == whole


async def test_only_the_same_restore_is_gone_on_with(
    client: VerbatimClient, vault: Vault, other_vault: Vault
) -> None:
    """Rule: an interrupted restore is its store's and leads where it was begun for; what is refused names
    the next step, and taking it back is possible from anywhere."""
    whole = await archived(client, vault, other_vault)
    to_50 = Wanted(STREAM, Until(sequence=50), replace=True)
    with pytest.raises(Killed):
        await restoration(client, vault, crash="restore.deleted").bring_back(to_50)
    with pytest.raises(RefusedError, match="is of another backup directory") as refused:
        await restoration(client, other_vault).bring_back(to_50)
    assert "restore --stream AGENTESE --undo" in str(refused.value.hint)
    with pytest.raises(RefusedError, match="leads to sequence 50, not to the end") as refused:
        await restoration(client, vault).bring_back(REPLACE)
    assert "`kgents-backup restore --stream AGENTESE --to 50 --replace`" in str(refused.value.hint)
    await restoration(client, other_vault).undo(STREAM)
    assert await bodies(client) == whole
    # What the first directory still holds of its own is over: it begins anew.
    report = await restoration(client, vault).bring_back(to_50)
    assert (await bodies(client), report.missing) == (whole[:50], 10)


@pytest.mark.parametrize(
    "stale", ["restore.fenced", pytest.param("restore.filled", marks=[pytest.mark.long])]
)
async def test_a_stale_record_does_not_win_over_what_the_server_says(
    client: VerbatimClient, vault: Vault, other_vault: Vault, stale: str
) -> None:
    """Rule: taken back from elsewhere, and another restore begun there: it is that one which is under way."""
    whole = await archived(client, vault, other_vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash=stale).bring_back(REPLACE)
    await restoration(client, other_vault).undo(STREAM)
    with pytest.raises(Killed):
        await restoration(client, other_vault, crash="restore.deleted").bring_back(REPLACE)
    with pytest.raises(RefusedError, match="is of another backup directory"):
        await restoration(client, vault).bring_back(REPLACE)
    await restoration(client, other_vault).bring_back(REPLACE)
    assert await bodies(client) == whole


@pytest.mark.parametrize(
    ("point", "is_stored"), [("restore.fenced", True), ("restore.filled", False)], ids=["stored", "marked"]
)
async def test_what_the_release_before_began_is_gone_on_with(
    client: VerbatimClient, vault: Vault, point: str, is_stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: a mark without a store or plan may be gone on with or taken back, as that release had it."""
    whole = await archived(client, vault)
    with monkeypatch.context() as patch:

        async def none(_: object) -> str:
            return ""

        patch.setattr(closing, "store_identity", none)
        with pytest.raises(Killed):
            await restoration(client, vault, crash=point).bring_back(REPLACE)
    record = await vault.read_document(record_key(STREAM), RestoreRecord)
    assert (record.store, record.filled) == ("", None)
    if not is_stored:
        await journal.clear(vault, STREAM)
    report = await restoration(client, vault).bring_back(REPLACE)
    assert (await bodies(client), report.missing) == (whole, 0)


async def test_a_stream_that_was_made_anew_behind_the_fence_is_not_opened(
    client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: what is opened is what was read back: another's fill under the same mark, or an empty one, stays
    closed, and the same command then restores it."""
    whole = await archived(client, vault)
    read_back = verifying.read_back

    async def then_another(asked: VerbatimClient, *given: Any, **named: Any) -> Any:
        found = await read_back(asked, *given, **named)
        info = await stream_info(asked, STREAM)
        assert info is not None
        if is_emptied:
            await request(asked, f"STREAM.DELETE.{STREAM}")
            await request(asked, f"STREAM.CREATE.{STREAM}", info.config)
        else:
            config = {k: v for k, v in info.config.items() if k != "subject_transform"}
            config["subjects"] = ["kgents.restore.AGENTESE-of-another.>"]
            await request(asked, f"STREAM.UPDATE.{STREAM}", config)
        return found

    for is_emptied, said in ((False, "not the one that was filled"), (True, "holds 0 messages up to")):  # noqa: B007
        with monkeypatch.context() as patch:
            patch.setattr(replacing, "read_back", then_another)
            with pytest.raises(ProtocolError, match=said):
                await restoration(client, vault).bring_back(REPLACE)
        info = await stream_info(client, STREAM)
        assert info is not None
        assert info.config["subjects"] != ["agentese.>"]
    await restoration(client, vault).bring_back(REPLACE)
    assert await bodies(client) == whole


async def test_no_success_is_said_over_another_stream(
    client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: before a restore says that it succeeded, the stream that is open is compared with the one it
    filled; also where it was interrupted right after it opened that. The next run begins anew."""
    whole = await archived(client, vault)

    async def emptied(client: VerbatimClient, api: str, payload: Any = None, **options: Any) -> Any:
        answer = await request(client, api, payload, **options)
        if api == f"STREAM.UPDATE.{STREAM}":
            await made_empty(client)
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(carrying_out, "request", emptied)
        with pytest.raises(ProtocolError, match="is not the one that was restored: it holds 0 messages"):
            await restoration(client, vault).bring_back(REPLACE)
    assert await restoration(client, vault).bring_back(REPLACE)
    assert await bodies(client) == whole
    with pytest.raises(Killed):
        await restoration(client, vault, crash="restore.released").bring_back(REPLACE)
    await made_empty(client)
    with pytest.raises(ProtocolError, match="is not the one that was restored: it holds 0 messages"):
        await restoration(client, vault).bring_back(REPLACE)
    await restoration(client, vault).bring_back(REPLACE)
    assert await bodies(client) == whole


async def test_who_lost_the_lease_deletes_and_opens_nothing(
    each_client: VerbatimClient, vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the owner is asked right before each, by whatever changes the server's streams."""
    client = each_client
    await archived(client, vault)
    kept = (await restoration(client, vault).bring_back(REPLACE)).kept
    await client.jetstream().delete_stream(STREAM)
    # An old primary's region that is gone, and this one's mirror.
    await request(client, "STREAM.CREATE.ORIGIN", {"name": "ORIGIN", "subjects": ["origin.>"]})
    await request(client, f"STREAM.CREATE.{STREAM}", {"name": STREAM, "mirror": {"name": "ORIGIN"}})

    async def give() -> VerbatimClient:
        return client

    async def gone() -> VerbatimClient:
        raise TransientError("nats: not connected")

    def lost(_: object) -> None:
        raise LockedError("the lease of this restore on the server was lost")

    region = Region(gone, give, "primary", "dr", (STREAM,))
    backup = cast("Backup", SimpleNamespace(client=give, owner="test", clock=CLOCK))
    prepared = await prepare(vault, STREAM, Until())
    with monkeypatch.context() as patch:
        patch.setattr(Ownership, "check", lost)
        alone = Ownership(client, "test", CLOCK)
        for asked in (
            run_discard(backup, Arguments(stream=None, dry_run=False)),
            disaster.promote(region, STREAM, [], archive=None, scratch=vault, clock=CLOCK),
            restore(client, vault, prepared, clock=CLOCK, into="LOOK", check=alone.check),
        ):
            with pytest.raises(LockedError, match="was lost"):
                await asked
    assert await stream_info(client, kept) is not None
    mirror, half = await stream_info(client, STREAM), await stream_info(client, "LOOK")
    assert mirror is not None
    assert mirror.config["mirror"]["name"] == "ORIGIN"
    assert half is not None
    assert is_left_half(half.config)


async def made_empty(client: VerbatimClient) -> None:
    """As two runs left it: the same configuration, lineage and all, over nothing."""
    info = await stream_info(client, STREAM)
    assert info is not None
    assert read_lineage(info.config) is not None
    await request(client, f"STREAM.DELETE.{STREAM}")
    await request(client, f"STREAM.CREATE.{STREAM}", info.config)


async def test_a_stream_under_restore_is_neither_promoted_nor_fenced(
    client: VerbatimClient, vault: Vault
) -> None:
    """Rule: its mark and its fence are the restore's; taken away, its next run would not know it."""

    async def give() -> VerbatimClient:
        return client

    region = Region(give, give, "primary", "dr", (STREAM,))
    await archived(client, vault)
    with pytest.raises(Killed):
        await restoration(client, vault, crash="restore.filled").bring_back(REPLACE)
    before = await stream_info(client, STREAM)
    assert before is not None
    assert await fencing.try_fence(region, STREAM) is fencing.Fencing.HALF_DEAD
    after = await stream_info(client, STREAM)
    assert after is not None
    assert after.config == before.config
    record = await journal.find(client, vault, STREAM)
    assert record is not None
    await request(client, f"STREAM.DELETE.{STREAM}")
    mirror = {"name": STREAM, "mirror": {"name": record.kept}, "storage": "file"}
    await request(client, f"STREAM.CREATE.{STREAM}", mark(mirror, record))
    with pytest.raises(RestoringError, match="is being restored, or its restore was interrupted"):
        await disaster.promote(region, STREAM, [], archive=None, scratch=vault, clock=CLOCK)
