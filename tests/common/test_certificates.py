"""The end of a certificate is read from the file that a process is given."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import generate_latest

from kgents_common import certificates
from kgents_common.errors import ConfigurationError
from kgents_common.telemetry import new_registry

SOON = datetime(2026, 12, 24, 12, 30, 15, tzinfo=UTC)
PAST_2050 = datetime(2061, 7, 28, tzinfo=UTC)  # written as a GeneralizedTime, of four digits


def pem(end: datetime, issuer: str = "somebody") -> str:
    """A certificate as an authority would make it."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nats")]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(end - timedelta(days=90))
        .not_valid_after(end)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(f"n{i}.example") for i in range(40)]), False)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize("end", [SOON, PAST_2050, datetime(2049, 12, 31, 23, 59, 59, tzinfo=UTC)])
def test_the_end_is_the_certificates_own(end: datetime) -> None:
    """Rule: whichever way it is written: two digits of a year until 2049, four from then on."""
    assert certificates.first_expiry(pem(end).encode()) == end


def test_of_a_chain_the_first_that_ends_is_told() -> None:
    """Rule: an authority that ends takes what it signed with it; text around certificates is nobody's."""
    chain = f"the leaf\n{pem(PAST_2050)}\nits authority\n{pem(SOON, 'x' * 60)}"
    assert certificates.first_expiry(chain.replace("\n", "\r\n").encode()) == SOON


@pytest.mark.parametrize("cut", [0, 1, 2, 9, 60, 130])
def test_what_is_no_certificate_says_so(cut: int) -> None:
    """Rule: nothing but the one error leaves the reader."""
    head, *body, tail = pem(SOON).strip().splitlines()
    text = "\n".join([head, "".join(body)[: cut - cut % 4] or "AAAA", tail])
    with pytest.raises(ConfigurationError):
        certificates.first_expiry(text.encode())
    with pytest.raises(ConfigurationError):
        certificates.first_expiry(b"-----BEGIN PRIVATE KEY-----")


def test_a_version_that_no_certificate_has_is_said_too(tmp_path: Path) -> None:
    """Rule: whatever the library says of a file, the metrics are read: not each error is a ValueError."""
    der = ssl.PEM_cert_to_DER_cert(pem(SOON))
    version = bytes((0xA0, 3, 2, 1, 2))
    assert version in der
    file = tmp_path / "odd.crt"
    file.write_text(ssl.DER_cert_to_PEM_cert(der.replace(version, version[:-1] + b"\x05", 1)))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        certificates.first_expiry(file.read_bytes())
    registry = new_registry()
    certificates.watch([file], registry)
    assert registry.get_sample_value("kgents_certificate_expiry_timestamp_seconds", {"file": str(file)}) == 0


def test_metrics_follow_the_file_and_an_unreadable_one_is_over(tmp_path: Path) -> None:
    """Rule: a renewed certificate is told without a restart; a file that is gone counts as ended (0)."""
    file, registry = tmp_path / "tls.crt", new_registry()
    certificates.watch([file], registry)

    def told() -> float:
        found = registry.get_sample_value("kgents_certificate_expiry_timestamp_seconds", {"file": str(file)})
        assert found is not None
        return found

    assert told() == 0
    file.write_text(pem(SOON))
    assert told() == SOON.timestamp()
    file.write_text(pem(PAST_2050))
    assert told() == PAST_2050.timestamp()
    assert b"kgents_certificate_expiry" in generate_latest(registry)
