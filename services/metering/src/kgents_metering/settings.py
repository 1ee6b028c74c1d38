"""What metering is told."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, model_validator

from kgents_common.database import DatabaseUrl
from kgents_common.settings import ServiceSettings


class MeteringSettings(ServiceSettings):
    """Metering's environment."""

    port: int = Field(8001, validation_alias="KGENTS_PORT", ge=0, le=65535)
    database_url: DatabaseUrl = Field(validation_alias="DATABASE_URL")
    meters_file: Path | None = Field(
        None,
        validation_alias="KGENTS_METERS_FILE",
        description="The meters an operator declares; required unless the role is reads",
    )
    keyring_file: Path | None = Field(
        None,
        validation_alias="KGENTS_KEYRING_FILE",
        description="Who may ask; required unless the role is writer",
    )
    openmeter_base_url: str | None = Field(None, validation_alias="OPENMETER_BASE_URL")
    openmeter_api_key: SecretStr | None = Field(None, validation_alias="OPENMETER_API_KEY")
    openmeter_version: Literal["v1", "v3"] = Field("v1", validation_alias="KGENTS_OPENMETER_API")
    openmeter_timeout_seconds: float = Field(15, validation_alias="KGENTS_OPENMETER_TIMEOUT_SECONDS", gt=0)
    openmeter_dedupe_seconds: float = Field(
        32 * 86400,
        validation_alias="KGENTS_OPENMETER_DEDUPE_SECONDS",
        gt=0,
        description="How long OpenMeter remembers an event: 32 days in its cloud, 24 h self-hosted",
    )
    reconcile_seconds: float = Field(
        3600,
        validation_alias="KGENTS_RECONCILE_SECONDS",
        ge=0,
        description="How often ledger and OpenMeter are compared; 0 for never",
    )
    role: Literal["all", "writer", "reads"] = Field(
        "all",
        validation_alias="KGENTS_METERING_ROLE",
        description="writer: apply and deliver; reads: answer questions, as many processes as they need",
    )
    reads_connections: int = Field(6, validation_alias="KGENTS_READS_CONNECTIONS", ge=1, le=100)
    reads_per_tenant: int = Field(
        2,
        validation_alias="KGENTS_READS_PER_TENANT",
        ge=1,
        description="Reads of one tenant at once; further ones wait for their turn",
    )
    reads_waiting_per_tenant: int = Field(32, validation_alias="KGENTS_READS_WAITING_PER_TENANT", ge=0)
    reads_statement_seconds: float = Field(10, validation_alias="KGENTS_READS_STATEMENT_SECONDS", gt=0)
    reads_seconds: float = Field(
        60,
        validation_alias="KGENTS_READS_SECONDS",
        gt=0,
        description="A read from its turn to its last byte",
    )
    reads_max_rows: int = Field(
        500_000, validation_alias="KGENTS_READS_MAX_ROWS", ge=1, description="Rows of one answer"
    )
    reads_nice: int = Field(
        5,
        validation_alias="KGENTS_READS_NICE",
        ge=0,
        le=19,
        description="How far processes of the role reads stand back for others on their machine",
    )
    raw_days: float | None = Field(
        None,
        validation_alias="KGENTS_RAW_DAYS",
        gt=0,
        description="After so long, what is in the ledger and in a verified backup leaves AGENTESE; None for"
        " as long as the stream keeps it",
    )
    apply_batch: int = Field(1000, validation_alias="KGENTS_APPLY_BATCH", ge=1, le=4000)
    deliver_in_flight: int = Field(4, validation_alias="KGENTS_DELIVER_IN_FLIGHT", ge=1, le=64)
    crash_at: str | None = Field(None, validation_alias="KGENTS_CRASH_AT")

    @model_validator(mode="after")
    def _each_role_has_its_files(self) -> Self:
        needed = {
            "KGENTS_METERS_FILE": self.meters_file is None and self.role != "reads",
            "KGENTS_KEYRING_FILE": self.keyring_file is None and self.role != "writer",
        }
        missing = [name for name, is_missing in needed.items() if is_missing]
        if missing:
            raise ValueError(f"{', '.join(missing)}: required for KGENTS_METERING_ROLE={self.role}")
        return self
