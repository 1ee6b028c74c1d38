"""The operator's commands: API keys are made, listed, replaced and ended in the keyring file."""

from __future__ import annotations

import argparse
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec

from kgents_common import keyring, rfc3339
from kgents_common.errors import KgentsError, PermanentError
from kgents_common.keyring import KeyRecord
from kgents_common.keyring.records import EVERY_TENANT

_SPAN = re.compile(r"([0-9]{1,6})([hd])")


def run_command(arguments: list[str]) -> int:
    """Run one command; 0 when it did what it says."""
    parser = _parser()
    parsed = parser.parse_args(arguments)
    if parsed.file is None:
        parser.error("name the keyring: --file or KGENTS_KEYRING_FILE")
    try:
        parsed.command(parsed)
    except KgentsError as error:
        print(f"error: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: the keyring {parsed.file} cannot be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="kgents-api", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    keys = commands.add_parser("keys", help="API keys").add_subparsers(required=True, metavar="what")
    create = keys.add_parser("create", help="make a key; it is shown once")
    whose = create.add_mutually_exclusive_group(required=True)
    whose.add_argument("--tenant", help="whose it is")
    whose.add_argument(
        "--tenants", nargs="+", metavar="TENANT", help="a key of several tenants; each request names one"
    )
    whose.add_argument("--every-tenant", action="store_true", help="a key of all tenants, also of later ones")
    create.add_argument(
        "--scopes",
        nargs="+",
        required=True,
        choices=keyring.SCOPES,
        metavar="SCOPE",
        help=f"what it may do, of: {', '.join(keyring.SCOPES)}",
    )
    create.add_argument("--name", default="", help="what you call it")
    ends = create.add_mutually_exclusive_group()
    ends.add_argument("--expires-in", type=_span, metavar="SPAN", help="e.g. 90d or 12h")
    ends.add_argument("--expires-at", type=_moment, metavar="TIME", help="RFC 3339")
    create.set_defaults(command=_create)
    listing = keys.add_parser("list", help="one line each, never a key itself")
    listing.set_defaults(command=_list)
    rotate = keys.add_parser("rotate", help="make its successor; the old key is good until the overlap ends")
    rotate.add_argument("id")
    rotate.add_argument("--overlap", type=_span, default=timedelta(days=7), metavar="SPAN", help="default 7d")
    rotate.add_argument("--expires-in", type=_span, metavar="SPAN", help="else as long as the old one had")
    rotate.set_defaults(command=_rotate)
    revoke = keys.add_parser("revoke", help="end a key; running services follow within seconds")
    revoke.add_argument("id")
    revoke.set_defaults(command=_revoke)
    migrate = keys.add_parser("migrate", help="bring a keyring of an earlier release into today's form")
    migrate.set_defaults(command=_migrate)
    for command in (create, listing, rotate, revoke, migrate):
        command.add_argument(
            "--file",
            type=Path,
            default=os.environ.get("KGENTS_KEYRING_FILE"),
            help="the keyring (default: $KGENTS_KEYRING_FILE)",
        )
    listing.add_argument(
        "--uses",
        type=Path,
        default=os.environ.get("KGENTS_KEYRING_USES_DIRECTORY"),
        help="where services note uses (default: $KGENTS_KEYRING_USES_DIRECTORY)",
    )
    return parser


def _create(arguments: argparse.Namespace) -> None:
    now = datetime.now(UTC)
    expires_at = now + arguments.expires_in if arguments.expires_in else arguments.expires_at
    whose = arguments.tenant or arguments.tenants or EVERY_TENANT
    key, record = keyring.mint(whose, arguments.scopes, now=now, expires_at=expires_at, name=arguments.name)
    with keyring.edit(arguments.file) as records:
        records.append(record)
    print(key)


def _list(arguments: argparse.Namespace) -> None:
    used = keyring.last_uses(arguments.uses) if arguments.uses else None
    now = datetime.now(UTC)
    for record in sorted(keyring.load(arguments.file), key=lambda r: r.created_at):
        ends = "never ends" if record.expires_at is None else f"ends {_shown(record.expires_at)}"
        if record.is_over(now):
            ends = f"ended {_shown(record.expires_at)}"
        last = "" if used is None else f"  used {_shown(used.get(record.id))}"
        print(
            f"{record.id}  {','.join(record.tenants) or record.tenant}  made {_shown(record.created_at)}"
            f"  {ends}{last}  {' '.join(record.scopes)}" + (f"  {record.name!r}" if record.name else "")
        )


def _rotate(arguments: argparse.Namespace) -> None:
    now = datetime.now(UTC)
    with keyring.edit(arguments.file) as records:
        old = _find(records, arguments.id)
        if old.is_over(now):
            raise PermanentError(f"{old.id} has ended", hint="make a key: kgents-api keys create")
        life = arguments.expires_in or (old.expires_at - old.created_at if old.expires_at else None)
        key, record = keyring.mint(
            old.tenants or old.tenant,
            old.scopes,
            now=now,
            expires_at=now + life if life else None,
            name=old.name,
        )
        until = now + arguments.overlap
        if old.expires_at is None or until < old.expires_at:
            records[records.index(old)] = msgspec.structs.replace(old, expires_at=until)
        records.append(record)
    print(key)


def _revoke(arguments: argparse.Namespace) -> None:
    with keyring.edit(arguments.file) as records:
        records.remove(_find(records, arguments.id))
    print(f"revoked {arguments.id}")


def _migrate(arguments: argparse.Namespace) -> None:
    keyring.load(arguments.file)  # it must be there
    with keyring.edit(arguments.file) as records:
        count = len(records)
    print(f"{count} keys, none changed")


def _find(records: list[KeyRecord], key_id: str) -> KeyRecord:
    for record in records:
        if record.id == key_id:
            return record
    raise PermanentError(f"no key {key_id}", hint="list them: kgents-api keys list")


def _shown(moment: datetime | None) -> str:
    return "never" if moment is None else f"{moment:%Y-%m-%d %H:%M}"


def _span(text: str) -> timedelta:
    found = _SPAN.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError("a number of days or hours, e.g. 90d or 12h")
    return timedelta(days=int(found[1])) if found[2] == "d" else timedelta(hours=int(found[1]))


def _moment(text: str) -> datetime:
    try:
        return rfc3339.moment(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
