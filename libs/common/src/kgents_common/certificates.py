"""When the certificates end that a process is given as files; it verifies none of them.

A certificate's end is read from its own bytes (RFC 5280, section 4.1: Certificate, TBSCertificate, Validity):
the standard library tells it of authorities alone.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge

from kgents_common.errors import ConfigurationError

_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\n.+?\n-----END CERTIFICATE-----", re.DOTALL)
_INTEGER, _SEQUENCE, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x02, 0x30, 0x17, 0x18, 0xA0

_log = structlog.get_logger()


def watch(files: Sequence[Path], registry: CollectorRegistry) -> None:
    """Tell in the metrics, at each read, when the files' certificates end; 0 where one cannot be read."""
    gauge = Gauge(
        "kgents_certificate_expiry_timestamp_seconds",
        "When the first of a file's certificates ends; 0 where the file cannot be read",
        ["file"],
        registry=registry,
    )
    for file in files:
        gauge.labels(str(file)).set_function(partial(_shown, file))


def first_expiry(text: str) -> datetime:
    """When the first of the certificates in a PEM text ends.

    Raises:
        ConfigurationError: There is none, or one cannot be read.
    """
    found = _PEM.findall(text.replace("\r\n", "\n"))
    if not found:
        raise ConfigurationError("no certificate")
    try:
        return min(not_after(ssl.PEM_cert_to_DER_cert(pem)) for pem in found)
    except (ValueError, IndexError, StopIteration) as error:
        raise ConfigurationError("not a certificate") from error


def not_after(der: bytes) -> datetime:
    """The end of one certificate.

    Raises:
        ValueError: It is none.
    """
    fields = _elements(_first(_first(der)))
    tag, _ = next(fields)
    if tag == _VERSION:
        tag, _ = next(fields)
    if tag != _INTEGER:
        raise ValueError("no serial number")
    next(fields)  # the signature's algorithm
    next(fields)  # the issuer
    tag, validity = next(fields)
    if tag != _SEQUENCE:
        raise ValueError("no validity")
    _, (tag, moment) = _elements(validity)
    # RFC 5280, section 4.1.2.5: in UTC, with seconds; two digits of a year are 1950 to 2049.
    if tag == _UTC_TIME:
        century = b"19" if moment[:2] >= b"50" else b"20"
        moment = century + moment
    elif tag != _GENERALIZED_TIME:
        raise ValueError("no time")
    return datetime.strptime(moment.decode(), "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)


def _shown(file: Path) -> float:
    try:
        return first_expiry(file.read_text()).timestamp()
    except (ConfigurationError, OSError, UnicodeDecodeError) as error:
        _log.error("certificate.unreadable", file=str(file), error=str(error))
        return 0.0


def _first(der: bytes) -> bytes:
    """The contents of the sequence that comes first."""
    tag, value = next(_elements(der))
    if tag != _SEQUENCE:
        raise ValueError(f"tag {tag:#x}")
    return value


def _elements(der: bytes) -> Iterator[tuple[int, bytes]]:
    """Tag and value of each element (X.690, definite lengths)."""
    at = 0
    while at < len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            size = length & 0x7F
            length = int.from_bytes(der[at : at + size])
            at += size
        if at + length > len(der):
            raise ValueError("cut off")
        yield tag, der[at : at + length]
        at += length
