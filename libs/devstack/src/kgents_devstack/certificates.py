"""An authority, and a certificate for each server in a cluster.

For a laptop's cluster, and for tests. The authority's key is thrown away: who wants another certificate makes
all of them anew. An installation has them of cert-manager (deploy/k8s/components/cert-manager).
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# Under which names clients, and NATS' nodes each other, reach the servers.
SERVERS: Mapping[str, Sequence[str]] = {
    "nats": ("nats.kgents-agents.svc", "*.nats-headless.kgents-agents.svc"),
    "triad-redis": ("triad-redis.kgents-triad.svc", "*.triad-redis-nodes.kgents-triad.svc"),
    "triad-postgres": ("triad-postgres.kgents-triad.svc",),
}
LAPTOP = timedelta(days=3650)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as PEM."""

    certificate: bytes
    key: bytes


class Authority:
    """Who signs; its key is nowhere but here."""

    def __init__(self, name: str = "kgents", *, lasts: timedelta = LAPTOP) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._lasts = lasts
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = (
            self._unsigned(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_signs(), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = made.public_bytes(serialization.Encoding.PEM)

    def issue(self, name: str, names: Sequence[str]) -> Pair:
        """A certificate of a server, good as a client's, too.

        Args:
            names: DNS names (`*.` at the front for any), or addresses.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        made = (
            self._unsigned(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key())
            .add_extension(x509.SubjectAlternativeName([_general(one) for one in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return Pair(made.public_bytes(serialization.Encoding.PEM), private)

    def _unsigned(self, name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + self._lasts)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        )


def _signs() -> x509.KeyUsage:
    others = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    more = ("key_agreement", "encipher_only", "decipher_only")
    return x509.KeyUsage(**dict.fromkeys((*others, *more), False), key_cert_sign=True, crl_sign=True)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def write(directory: Path, pair: Pair, authority: bytes, *, name: str = "tls") -> None:
    """`<name>.crt`, `<name>.key` (for its owner alone) and `ca.crt`, as a Secret of TLS has them."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "ca.crt").write_bytes(authority)
    (directory / f"{name}.crt").write_bytes(pair.certificate)
    descriptor = os.open(directory / f"{name}.key", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pair.key)


def main() -> int:
    """Make all of them anew; 1 where the directory does not take them."""
    parser = argparse.ArgumentParser(prog="python -m kgents_devstack.certificates", description=__doc__)
    parser.add_argument("directory", type=Path)
    directory: Path = parser.parse_args().directory
    authority = Authority()
    try:
        for name, names in SERVERS.items():
            write(directory, authority.issue(name, names), authority.certificate, name=name)
    except OSError as error:
        print(f"{error.filename or directory}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
