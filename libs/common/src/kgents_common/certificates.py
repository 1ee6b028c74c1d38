"""When the certificates end that a process is given as files; it verifies none of them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Gauge

from kgents_common.errors import ConfigurationError

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


def first_expiry(text: bytes) -> datetime:
    """When the first of the certificates in a PEM text ends.

    Raises:
        ConfigurationError: There is none, or one cannot be read.
    """
    from cryptography import x509  # here: only a process with such a file pays for its import

    try:
        return min(one.not_valid_after_utc for one in x509.load_pem_x509_certificates(text))
    except (ValueError, x509.InvalidVersion) as error:
        raise ConfigurationError("no certificate, or one that cannot be read") from error


def _shown(file: Path) -> float:
    try:
        return first_expiry(file.read_bytes()).timestamp()
    except (ConfigurationError, OSError) as error:
        _log.error("certificate.unreadable", file=str(file), error=str(error))
        return 0.0
