"""Backup's settings, read once from the environment; it opens nothing."""

from __future__ import annotations

from datetime import time, timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import NoDecode

from kgents_common.database import checked_url
from kgents_common.settings import ServiceSettings


class BackupSettings(ServiceSettings):
    """What the backup service and its commands are told.

    Object stores also take their services' usual variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`).
    """

    port: int = Field(8003, validation_alias="KGENTS_PORT", ge=0, le=65535)
    streams: Annotated[tuple[str, ...], NoDecode] = Field(
        ("AGENTESE", "EVENTS"), validation_alias="KGENTS_BACKUP_STREAMS", min_length=1
    )
    directory: Path = Field(Path("/var/lib/kgents-backup"), validation_alias="KGENTS_BACKUP_DIRECTORY")
    offsite_url: str | None = Field(None, validation_alias="KGENTS_BACKUP_OFFSITE_URL")
    s3_endpoint: str | None = Field(None, validation_alias="KGENTS_BACKUP_S3_ENDPOINT")
    s3_region: str | None = Field(None, validation_alias="AWS_REGION")
    s3_access_key: str | None = Field(None, validation_alias="AWS_ACCESS_KEY_ID")
    s3_secret_key: SecretStr | None = Field(None, validation_alias="AWS_SECRET_ACCESS_KEY")
    key_file: Path | None = Field(None, validation_alias="KGENTS_BACKUP_KEY_FILE")
    local_days: float = Field(7, validation_alias="KGENTS_BACKUP_LOCAL_DAYS", gt=0)
    offsite_days: float = Field(30, validation_alias="KGENTS_BACKUP_OFFSITE_DAYS", gt=0)
    archive_seconds: float = Field(3, validation_alias="KGENTS_BACKUP_ARCHIVE_SECONDS", gt=0, le=10)
    segment_bytes: int = Field(4 * 1024 * 1024, validation_alias="KGENTS_BACKUP_SEGMENT_BYTES", ge=1024)
    daily_at: time | None = Field(
        time(2, 0),
        validation_alias="KGENTS_BACKUP_DAILY_AT",
        description="UTC; empty where a CronJob runs `daily`: only what it missed is made up for",
    )
    database_url: SecretStr | None = Field(None, validation_alias="DATABASE_URL")
    drill_nats: str | None = Field(None, validation_alias="KGENTS_DRILL_NATS")
    dr_servers: Annotated[tuple[str, ...], NoDecode] = Field((), validation_alias="KGENTS_DR_NATS_SERVERS")
    primary_domain: str = Field("primary", validation_alias="KGENTS_PRIMARY_DOMAIN")
    dr_domain: str = Field("dr", validation_alias="KGENTS_DR_DOMAIN")
    crash_at: str | None = Field(None, validation_alias="KGENTS_CRASH_AT")

    @field_validator("streams", "dr_servers", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        return tuple(s.strip() for s in value.split(",") if s.strip()) if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            checked_url(value.get_secret_value())
        return value

    @field_validator("daily_at", mode="before")
    @classmethod
    def _no_time(cls, value: object) -> object:
        return None if value == "" else value

    @property
    def local_keep(self) -> timedelta:
        """How long the local store keeps."""
        return timedelta(days=self.local_days)

    @property
    def offsite_keep(self) -> timedelta:
        """How long the off-site store keeps."""
        return timedelta(days=self.offsite_days)
