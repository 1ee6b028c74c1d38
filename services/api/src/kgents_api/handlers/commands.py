"""The operator's commands: API keys are made, listed and revoked in the keyring file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from kgents_common import keyring
from kgents_common.errors import KgentsError, PermanentError


def run_command(arguments: list[str]) -> int:
    """Run one command; 0 when it did what it says."""
    parser = argparse.ArgumentParser(prog="kgents-api", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    keys = commands.add_parser("keys", help="API keys").add_subparsers(required=True, metavar="what")
    create = keys.add_parser("create", help="make a key; it is shown once")
    create.add_argument("--tenant", required=True)
    create.add_argument("--scopes", nargs="+", default=list(keyring.TENANT_SCOPES), metavar="SCOPE")
    create.set_defaults(command=_create)
    listing = keys.add_parser("list", help="one line each, never a key itself")
    listing.set_defaults(command=_list)
    revoke = keys.add_parser("revoke", help="end a key; running services follow within seconds")
    revoke.add_argument("id")
    revoke.set_defaults(command=_revoke)
    for command in (create, listing, revoke):
        command.add_argument(
            "--file",
            type=Path,
            default=os.environ.get("KGENTS_KEYRING_FILE"),
            help="the keyring (default: $KGENTS_KEYRING_FILE)",
        )
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
    return 0


def _create(arguments: argparse.Namespace) -> None:
    records = keyring.load(arguments.file) if arguments.file.exists() else []
    key, record = keyring.mint(arguments.tenant, arguments.scopes)
    keyring.write(arguments.file, [*records, record])
    print(key)


def _list(arguments: argparse.Namespace) -> None:
    for record in keyring.load(arguments.file):
        print(f"{record.id}  {record.tenant}  {record.created_at:%Y-%m-%d}  {' '.join(record.scopes)}")


def _revoke(arguments: argparse.Namespace) -> None:
    records = keyring.load(arguments.file)
    left = [record for record in records if record.id != arguments.id]
    if len(left) == len(records):
        raise PermanentError(f"no key {arguments.id}", hint="list them: kgents-api keys list")
    keyring.write(arguments.file, left)
    print(f"revoked {arguments.id}")
