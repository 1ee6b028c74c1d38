"""Each role of metering is told what it needs, and nothing else."""

from __future__ import annotations

import pytest

from kgents_common.errors import ConfigurationError
from kgents_metering.settings import MeteringSettings


@pytest.mark.parametrize(
    ("role", "needed"),
    [
        ("writer", {"KGENTS_METERS_FILE"}),
        ("reads", {"KGENTS_KEYRING_FILE"}),
        ("all", {"KGENTS_METERS_FILE", "KGENTS_KEYRING_FILE"}),
    ],
)
def test_a_role_needs_its_own_files_alone(
    role: str, needed: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule: the writer knows no keys, the reads declare no meters; what is missing is named, all of it."""
    monkeypatch.setenv("NATS_SERVERS", "nats://127.0.0.1:4222")
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1/x")
    monkeypatch.setenv("KGENTS_METERING_ROLE", role)
    for name in ("KGENTS_METERS_FILE", "KGENTS_KEYRING_FILE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError) as error:
        MeteringSettings.from_environment()
    assert {
        word for word in str(error.value).replace(",", ":").split(": ") if word.startswith("KGENTS_")
    } == needed
    for name in needed:
        monkeypatch.setenv(name, "file")
    assert MeteringSettings.from_environment().role == role
