"""Encryption at rest: AES-256-GCM frames under a key for each file; without a key, files as they are.

The construction is STREAM (Hoang, Reyhanitabar, Rogaway, Vizár 2015) as in age and Tink: HKDF-SHA-256
derives the file's key from the master key, a random salt and the file's name, so a file moved to another
name does not open; the nonce is the frame's number and whether it is the last, so frames cannot be reordered
or cut off.

    magic "KGSEAL1\\0" | key id (8) | salt (32) | frames: (1 MiB of content + 16 bytes tag) …
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kgents_backup.model.faults import CorruptError
from kgents_common.errors import ConfigurationError

MAGIC = b"KGSEAL1\0"
KEY_BYTES = 32
SALT_BYTES = 32
ID_BYTES = 8
FRAME_BYTES = 1024 * 1024
TAG_BYTES = 16


class Sealer:
    """Seals with the first key, opens with any; with no keys it passes files through.

    Args:
        keys: Master keys of 32 bytes, the current one first.
    """

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        if any(len(key) != KEY_BYTES for key in keys):
            raise ConfigurationError("a backup key is not 32 bytes", hint="make one with `kgents-backup key`")
        self._keys = {_key_id(key): key for key in keys}
        self._current = keys[0] if keys else None

    @property
    def is_sealing(self) -> bool:
        """Whether files are encrypted."""
        return self._current is not None

    def seal(self, key: str, data: bytes) -> bytes:
        """What is stored under `key` for `data`."""
        if self._current is None:
            return data
        salt = secrets.token_bytes(SALT_BYTES)
        header = MAGIC + _key_id(self._current) + salt
        cipher = _cipher(self._current, salt, key)
        sealed = [header]
        count = max(1, -(-len(data) // FRAME_BYTES))
        for number in range(count):
            frame = data[number * FRAME_BYTES : (number + 1) * FRAME_BYTES]
            sealed.append(cipher.encrypt(_nonce(number, is_last=number == count - 1), frame, header))
        return b"".join(sealed)

    def open(self, key: str, data: bytes) -> bytes:
        """The content of the file stored under `key`.

        Raises:
            CorruptError: It was changed, cut or moved to another name; or it is not sealed although we seal.
            ConfigurationError: It is sealed with a key we do not have.
        """
        if not data.startswith(MAGIC):
            if self.is_sealing:
                raise CorruptError(key, "is not encrypted, although a key is set")
            return data
        end = len(MAGIC) + ID_BYTES + SALT_BYTES
        header, body = data[:end], data[end:]
        master = self._keys.get(header[len(MAGIC) : len(MAGIC) + ID_BYTES])
        if master is None:
            raise ConfigurationError(
                f"{key} is encrypted with a key that is not in the key file",
                hint="add the older key as a further line of KGENTS_BACKUP_KEY_FILE",
            )
        cipher = _cipher(master, header[-SALT_BYTES:], key)
        step = FRAME_BYTES + TAG_BYTES
        count = max(1, -(-len(body) // step))
        opened: list[bytes] = []
        for number in range(count):
            frame = body[number * step : (number + 1) * step]
            try:
                opened.append(cipher.decrypt(_nonce(number, is_last=number == count - 1), frame, header))
            except (InvalidTag, ValueError) as error:
                raise CorruptError(key, f"frame {number} does not open: changed, cut or moved") from error
        return b"".join(opened)


def load_keys(path: Path) -> list[bytes]:
    """Master keys from a file: one base64 of 32 bytes a line, the current one first.

    Raises:
        ConfigurationError: The file is missing, readable by others, or holds something else.
    """
    try:
        if path.stat().st_mode & 0o007:
            raise ConfigurationError(f"the key file {path} is open to everybody", hint=f"chmod o= {path}")
        lines = [line.strip() for line in path.read_text().splitlines() if line.strip()]
        keys = [base64.b64decode(line, validate=True) for line in lines]
    except OSError as error:
        raise ConfigurationError(f"the key file cannot be read: {error.strerror}") from error
    except (binascii.Error, UnicodeDecodeError) as error:
        raise ConfigurationError("the key file holds a line that is not base64") from error
    if not keys:
        raise ConfigurationError("the key file is empty", hint="make a key with `kgents-backup key`")
    return keys


def new_key() -> str:
    """A fresh master key as a line of a key file."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def _key_id(key: bytes) -> bytes:
    return hashlib.blake2b(key, digest_size=ID_BYTES, person=b"kgents-key-id").digest()


def _cipher(master: bytes, salt: bytes, key: str) -> AESGCM:
    derived = HKDF(
        algorithm=hashes.SHA256(), length=KEY_BYTES, salt=salt, info=b"kgents-backup:" + key.encode()
    )
    return AESGCM(derived.derive(master))


def _nonce(number: int, *, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + (b"\x01" if is_last else b"\x00")
