"""`python -m kgents_common.access`: seeds for an installation, and the server's configuration."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kgents_common.access import seeds
from kgents_common.access.configuration import AccountKeys, accounts
from kgents_common.access.users import ALL
from kgents_common.errors import KgentsError


def variable(name: str) -> str:
    """The variable of the server's environment that holds a user's public key."""
    return f"NKEY_{name.upper().replace('-', '_')}"


def template() -> str:
    """The configuration with every public key as a variable of the server's environment."""
    users = {user.name: f"${variable(user.name)}" for user in ALL}
    return accounts(AccountKeys(users, f"${variable(seeds.ISSUER)}", {}))


def main() -> int:
    """Run one command; 1 where it cannot."""
    parser = argparse.ArgumentParser(prog="python -m kgents_common.access", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    make = commands.add_parser("seeds", help="make what seeds are missing in a directory, <user>.nk each")
    make.add_argument("directory", type=Path)
    public = commands.add_parser("public", help="their public keys as lines NKEY_<USER>=…")
    public.add_argument("directory", type=Path)
    commands.add_parser("configuration", help="the server's accounts, with NKEY_… as variables")
    given = parser.parse_args()
    try:
        if given.command == "seeds":
            seeds.make(given.directory)
        elif given.command == "public":
            for name in (*(user.name for user in ALL), seeds.ISSUER):
                print(f"{variable(name)}={seeds.public(given.directory / f'{name}.nk')}")
        else:
            print(template(), end="")
    except KgentsError as error:
        print(error, error.hint or "", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
