"""Settings read once from the environment into one frozen object.

Names are the operators' own (`NATS_SERVERS`, `REDIS_URL`, `DATABASE_URL`, `OTEL_*`); what is
ours alone starts with `KGENTS_`. No secret has a default.
"""

from __future__ import annotations

import os
import socket
import ssl
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from kgents_common.errors import ConfigurationError
from kgents_common.masking import masked

OPERATIONS_ABOVE = 1000


class ServiceSettings(BaseSettings):
    """What every service is told."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", populate_by_name=True)

    host: str = Field("0.0.0.0", validation_alias="KGENTS_HOST")  # noqa: S104 a pod listens on its address
    port: int = Field(8000, validation_alias="KGENTS_PORT", ge=0, le=65535)
    operations_port: int | None = Field(
        None,
        validation_alias="KGENTS_OPERATIONS_PORT",
        ge=0,
        le=65535,
        description="For operators: /metrics, health in full, /docs; None for a thousand above KGENTS_PORT",
    )
    log_level: str = Field(
        "info", validation_alias="KGENTS_LOG_LEVEL", pattern="^(debug|info|warning|error)$"
    )
    instance: str = Field(default_factory=socket.gethostname, validation_alias="KGENTS_INSTANCE")
    drain_seconds: float = Field(
        20, validation_alias="KGENTS_DRAIN_SECONDS", gt=0, description="SIGTERM to exit, at most"
    )
    drain_delay_seconds: float = Field(
        0,
        validation_alias="KGENTS_DRAIN_DELAY_SECONDS",
        ge=0,
        description="Of these, how long to serve new connections while not ready, until balancers heard",
    )
    request_seconds: float = Field(
        60,
        validation_alias="KGENTS_REQUEST_SECONDS",
        gt=0,
        description="A request that has not come whole in so long is answered 408",
    )
    heartbeat_seconds: float = Field(5, validation_alias="KGENTS_HEARTBEAT_SECONDS", gt=0)
    nats_servers: Annotated[tuple[str, ...], NoDecode] = Field(validation_alias="NATS_SERVERS", min_length=1)
    nats_user: str | None = Field(None, validation_alias="NATS_USER")
    nats_password: SecretStr | None = Field(None, validation_alias="NATS_PASSWORD")
    nats_token: SecretStr | None = Field(None, validation_alias="NATS_TOKEN")
    nats_nkey_seed_file: Path | None = Field(None, validation_alias="NATS_NKEY_SEED_FILE")
    nats_ca_file: Path | None = Field(
        None,
        validation_alias="NATS_CA_FILE",
        description="Who may have signed the certificates of `tls://` servers (PEM); None for whom the"
        " machine trusts",
    )
    nats_inbox_prefix: str = Field(
        "_INBOX",
        validation_alias="NATS_INBOX_PREFIX",
        pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
        description="Answers come to `<prefix>.…`; a NATS user of one service may hear no other's",
    )
    keyring_uses_directory: Path | None = Field(
        None,
        validation_alias="KGENTS_KEYRING_USES_DIRECTORY",
        description="Where it is kept when a key was last used, shared by services; None for nowhere",
    )
    otlp_endpoint: str | None = Field(None, validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT")
    certificate_files: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        validation_alias="KGENTS_CERTIFICATE_FILES",
        description="PEM files, with commas between: metrics tell when their certificates end",
    )

    @field_validator("nats_servers", "certificate_files", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(s.strip() for s in value.split(",") if s.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _drain_fits(self) -> Self:
        if self.drain_delay_seconds >= self.drain_seconds:
            raise ValueError("KGENTS_DRAIN_DELAY_SECONDS must be less than KGENTS_DRAIN_SECONDS")
        return self

    @model_validator(mode="after")
    def _trusts_somebody(self) -> Self:
        if self.nats_ca_file is None:
            return self
        if any(not server.startswith(("tls://", "wss://")) for server in self.nats_servers):
            raise ValueError("NATS_CA_FILE is given, but NATS_SERVERS has one that is met without TLS")
        try:
            ssl.create_default_context(cafile=self.nats_ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise ValueError(f"NATS_CA_FILE {self.nats_ca_file}: {error.strerror or error}") from None
        return self

    @property
    def operations_at(self) -> int:
        """The operators' port."""
        if self.operations_port is not None:
            return self.operations_port
        return self.port + OPERATIONS_ABOVE if 0 < self.port <= 65535 - OPERATIONS_ABOVE else 0

    @classmethod
    def from_environment(cls, **overrides: Any) -> Self:
        """Read the environment.

        Raises:
            ConfigurationError: Naming every missing or wrong variable, never its value.
        """
        try:
            return cls(**overrides)
        except ValidationError as error:
            faults = [
                f"{'.'.join(str(part) for part in e['loc']) or cls.__name__}: {e['msg']}"
                for e in error.errors()
            ]
            raise ConfigurationError(
                "settings: " + "; ".join(faults), hint="set the variables and start again"
            ) from None

    def masked(self) -> dict[str, str]:
        """The effective settings by field name, secrets and passwords inside URLs masked; for `--check`."""
        shown: dict[str, str] = {}
        for name, value in self:
            if isinstance(value, tuple):
                shown[name] = ",".join(masked(str(item)) for item in value)
            else:
                shown[name] = masked(str(value))
        return shown


def process_id() -> str:
    """A name for this process that no other running one shares: host, process id."""
    return f"{socket.gethostname()}-{os.getpid()}"
