"""The commands of the second region: `kgents-backup dr …`; what they do is in `operations.disaster`."""

from __future__ import annotations

import argparse

from kgents_backup.app import Backup
from kgents_backup.operations import disaster
from kgents_backup.operations.disaster import Region
from kgents_backup.sources.stream_client import StreamClient
from kgents_common import streams
from kgents_common.errors import ConfigurationError, KgentsError

Arguments = argparse.Namespace


def add_disaster_commands(parser: argparse.ArgumentParser) -> None:
    """`status`, `mirror`, `promote`, `fence`, `account`, `failback`."""
    commands = parser.add_subparsers(dest="dr_command", required=True, metavar="command")
    commands.add_parser("status", help="both regions, stream by stream").set_defaults(run=_status)
    mirror = commands.add_parser("mirror", help="make the DR region's mirrors")
    mirror.add_argument("--replicas", type=int, default=1)
    mirror.set_defaults(run=_mirror)
    promote = commands.add_parser("promote", help="make the mirrors the streams")
    promote.add_argument("--store", choices=("all", "local", "offsite", "none"), default="all")
    promote.add_argument(
        "--force-unfenced", action="store_true", help="although the old primary answers and is not fenced"
    )
    promote.add_argument("--dry-run", action="store_true", help="only the plan")
    promote.set_defaults(run=_promote)
    fence = commands.add_parser("fence", help="take the subjects from the old primary's streams")
    fence.add_argument("--wait", type=float, default=0, metavar="SECONDS", help="until it answers")
    fence.set_defaults(run=_fence)
    account = commands.add_parser("account", help="publish what only the old primary has")
    account.add_argument("--dry-run", action="store_true", help="only count")
    account.set_defaults(run=_account)
    back = commands.add_parser("failback", help="make the old primary the primary again")
    back.add_argument("--dry-run", action="store_true", help="only the plan")
    back.set_defaults(run=_fail_back)


async def _status(backup: Backup, arguments: Arguments) -> int:
    region = _region(backup)
    try:
        for one in await disaster.status(region):
            if arguments.stream in (None, one.stream):
                lag = "unknown" if one.lag is None else str(one.lag)
                print(
                    f"{one.stream}: primary {one.primary} at {one.primary_last},"
                    f" dr {one.role} at {one.dr_last}, lag {lag}"
                )
    finally:
        await _close(region)
    return 0


async def _mirror(backup: Backup, arguments: Arguments) -> int:
    region = _region(backup)
    try:
        for stream in _streams(region, arguments):
            await disaster.mirror(region, stream, replicas=arguments.replicas)
            print(f"{stream}: mirrored from the domain {region.primary_domain}")
    finally:
        await _close(region)
    return 0


async def _promote(backup: Backup, arguments: Arguments) -> int:
    region = _region(backup)
    archive = None if arguments.store == "none" else backup.vault(arguments.store)
    try:
        for one in await disaster.status(region):
            if arguments.stream not in (None, one.stream):
                continue
            later = "; it is away: later, with `dr fence --wait`" if one.primary == "away" else ""
            behind = "unknown" if one.lag is None else one.lag
            print(
                f"{one.stream}:\n  1. fence the primary{later}"
                f"\n  2. end the mirror at sequence {one.dr_last}; messages behind: {behind}"
                f"\n  3. put back what the archive ({arguments.store}) holds beyond it"
                f"\n  4. listen to {', '.join(_specification(one.stream).subjects)}"
            )
            if arguments.dry_run:
                continue
            specification = _specification(one.stream)
            done = await disaster.promote(
                region,
                one.stream,
                specification.subjects,
                archive=archive,
                scratch=backup.local,
                clock=backup.clock,
                owner=backup.owner,
                force_unfenced=arguments.force_unfenced,
                config=streams.stream_config(specification, replicas=1),
            )
            print(
                f"{one.stream}: promoted by {done.how}; mirrored to {done.mirrored_to}; {done.known_lost}"
                f" acknowledged messages had not reached the mirror, {done.recovered} of them are back"
            )
            for name in done.consumers:
                print(f"  consumer {name} made where it stood in the archive")
            for note in done.notes:
                print(f"  note: {note}")
        if not arguments.dry_run:
            print("next: point the services' NATS_SERVERS here; run `python -m kgents_common.streams apply`")
    finally:
        await _close(region)
    return 0


async def _fence(backup: Backup, arguments: Arguments) -> int:
    region = _region(backup)
    try:
        left = await disaster.fence_when_back(region, seconds=arguments.wait)
    finally:
        await _close(region)
    for stream in region.streams:
        print(f"{stream}: {'NOT fenced, the primary does not answer' if stream in left else 'fenced'}")
    return 1 if left else 0


async def _account(backup: Backup, arguments: Arguments) -> int:
    region = _region(backup)
    try:
        for stream in _streams(region, arguments):
            found = await disaster.account(region, stream, dry_run=arguments.dry_run)
            print(
                f"{stream}: {found.beyond} messages beyond the mirror's end; {found.known} are there already,"
                f" {found.published} {'would be' if arguments.dry_run else 'are'} published now"
            )
    finally:
        await _close(region)
    return 0


async def _fail_back(backup: Backup, arguments: Arguments) -> int:
    region = _region(backup)
    try:
        for stream in _streams(region, arguments):
            print(
                f"{stream}:\n  1. fence the old primary, publish what only it has"
                "\n  2. copy its stream into the local store, then delete it"
                "\n  3. mirror the DR region's stream there"
                "\n  4. fence the DR region, wait until nothing is behind"
                "\n  5. promote the primary, mirror it in the DR region again"
            )
            if arguments.dry_run:
                continue
            account, done = await disaster.fail_back(
                region, stream, scratch=backup.local, clock=backup.clock, owner=backup.owner
            )
            print(
                f"{stream}: the primary is back at sequence {done.mirrored_to}, promoted by {done.how};"
                f" {account.published} messages only it had are published"
            )
    except KgentsError:
        print("not finished: `dr status` shows where it stands; run `dr failback` again")
        raise
    finally:
        await _close(region)
    return 0


def _region(backup: Backup) -> Region:
    region = backup.region()
    if region is None:
        raise ConfigurationError("there is no second region", hint="set KGENTS_DR_NATS_SERVERS")
    return region


async def _close(region: Region) -> None:
    if isinstance(region.dr, StreamClient):
        await region.dr.stop()


def _streams(region: Region, arguments: Arguments) -> tuple[str, ...]:
    return (arguments.stream,) if arguments.stream else region.streams


def _specification(stream: str) -> streams.StreamSpec:
    for found in streams.STREAMS:
        if found.name == stream:
            return found
    raise ConfigurationError(f"{stream} is none of our streams", hint="see KGENTS_BACKUP_STREAMS")
