"""Seeds of NATS users and of the issuer: made, kept in files for their owner alone, turned to public keys."""

from __future__ import annotations

import os
from pathlib import Path

import nkeys

from kgents_common.access.configuration import AccountKeys
from kgents_common.access.users import ALL
from kgents_common.errors import ConfigurationError

ISSUER = "issuer"


def make(directory: Path) -> None:
    """A seed for every user and for the issuer; what is there stays.

    Files are `<name>.nk`, mode 0600.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in (*(user.name for user in ALL), ISSUER):
        path = directory / f"{name}.nk"
        if path.exists():
            continue
        kind = nkeys.PREFIX_BYTE_ACCOUNT if name == ISSUER else nkeys.PREFIX_BYTE_USER
        seed = nkeys.encode_seed(os.urandom(32), kind)
        temporary = path.with_suffix(".new")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(bytes(seed))
        temporary.replace(path)


def read(path: Path) -> nkeys.KeyPair:
    """The key pair of a seed file.

    Raises:
        ConfigurationError: The file cannot be read, or holds no seed. Nothing of it is in the message.
    """
    try:
        return nkeys.from_seed(bytearray(path.read_bytes().strip()))
    except OSError as error:
        raise ConfigurationError(
            f"the seed {path} cannot be read: {error.strerror}",
            hint="make seeds: python -m kgents_common.access seeds <directory>",
        ) from error
    except Exception as error:
        raise ConfigurationError(f"{path} holds no nkey seed") from error


def public(path: Path) -> str:
    """The public key of a seed file.

    Raises:
        ConfigurationError: As `read`.
    """
    return bytes(read(path).public_key).decode()


def account_keys(directory: Path, *, password_users: dict[str, str] | None = None) -> AccountKeys:
    """The public keys of a directory that `make` filled.

    Raises:
        ConfigurationError: As `read`.
    """
    users = {user.name: public(directory / f"{user.name}.nk") for user in ALL}
    return AccountKeys(users, public(directory / f"{ISSUER}.nk"), password_users or {})
