"""What the api is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from kgents_common.redis_client import REDIS_URL_TEXT, RedisUrl
from kgents_common.settings import ServiceSettings

# A tenant may send what it did not send in so many seconds at once.
BURST_SECONDS = 10


class ApiSettings(ServiceSettings):
    """The api's environment."""

    port: int = Field(8000, validation_alias="KGENTS_PORT", ge=0, le=65535)
    keyring_file: Path = Field(validation_alias="KGENTS_KEYRING_FILE")
    redis_url: RedisUrl | None = Field(None, validation_alias="REDIS_URL", description=REDIS_URL_TEXT)
    # NATS takes 1 MiB for headers and payload together, and closes a client for good that sends more.
    max_event_bytes: int = Field(512 * 1024, validation_alias="KGENTS_MAX_EVENT_BYTES", gt=0, le=900 * 1024)
    max_batch_bytes: int = Field(4 * 1024 * 1024, validation_alias="KGENTS_MAX_BATCH_BYTES", gt=0)
    max_batch_events: int = Field(1000, validation_alias="KGENTS_MAX_BATCH_EVENTS", gt=0, le=5000)
    rate_limit_events_per_second: int = Field(
        10_000,
        validation_alias="KGENTS_RATE_LIMIT_EVENTS_PER_SECOND",
        ge=0,
        description="What a tenant may send in the long run; 0 for no limit, and none without REDIS_URL",
    )
    rate_limit_bytes_per_second: int = Field(
        8 * 1024 * 1024,
        validation_alias="KGENTS_RATE_LIMIT_BYTES_PER_SECOND",
        ge=0,
        description="The same in bytes of events",
    )
    tenant_stored_bytes: int = Field(
        0,
        validation_alias="KGENTS_TENANT_STORED_BYTES",
        ge=0,
        description="How much of AGENTESE one tenant may fill in KGENTS_STORED_DAYS; 0 for no quota, and none"
        " without REDIS_URL",
    )
    stored_days: int = Field(
        30, validation_alias="KGENTS_STORED_DAYS", gt=0, description="How long AGENTESE keeps messages"
    )
    max_held_bytes: int = Field(
        128 * 1024 * 1024,
        validation_alias="KGENTS_MAX_HELD_BYTES",
        gt=0,
        description="Of all requests for events under way in this process; where it is short, each tenant has"
        " its share",
    )
    max_concurrency: int = Field(512, validation_alias="KGENTS_MAX_CONCURRENCY", gt=0)
    publish_timeout_seconds: float = Field(4, validation_alias="KGENTS_PUBLISH_TIMEOUT_SECONDS", gt=0)
    message_id_secret: SecretStr | None = Field(
        None,
        validation_alias="KGENTS_MESSAGE_ID_SECRET",
        min_length=16,
        description="The same for all processes of the door, so that the stream drops what is sent again to"
        " another one; None for a random one: the ledger then drops it",
    )
    # On a disk of this process's own: two processes cannot share one.
    spool_directory: Path | None = Field(
        None,
        validation_alias="KGENTS_SPOOL_DIRECTORY",
        description="Where events are kept that NATS cannot take; None for none: they are answered 503",
    )
    spool_max_bytes: int = Field(256 * 1024 * 1024, validation_alias="KGENTS_SPOOL_MAX_BYTES", gt=0)
    # Without secrets there is no webhook door: it would verify what anybody signs.
    stripe_webhook_secrets: SecretStr | None = Field(None, validation_alias="STRIPE_WEBHOOK_SECRETS")
    stripe_webhook_secrets_file: Path | None = Field(None, validation_alias="STRIPE_WEBHOOK_SECRETS_FILE")
    stripe_mode: Literal["live", "test"] | None = Field(
        None,
        validation_alias="KGENTS_STRIPE_MODE",
        description="Store events of this mode only; else of both",
    )
    live_heartbeat_seconds: float = Field(15, validation_alias="KGENTS_LIVE_HEARTBEAT_SECONDS", gt=0)
    live_plain_ids: bool = Field(
        False,
        validation_alias="KGENTS_LIVE_PLAIN_IDS",
        description="While processes of the version before serve streams, too: they refuse ids with a time",
    )
    live_max_clients: int = Field(2000, validation_alias="KGENTS_LIVE_MAX_CLIENTS", ge=0)
    live_max_clients_per_tenant: int = Field(200, validation_alias="KGENTS_LIVE_MAX_CLIENTS_PER_TENANT", ge=0)
    stalled_client_seconds: float = Field(
        15,
        validation_alias="KGENTS_STALLED_CLIENT_SECONDS",
        gt=0,
        description="A client that takes none of its answer for so long is cut",
    )
    expected_workers: Annotated[tuple[str, ...], NoDecode] = Field(
        ("metering", "billing", "backup"),
        validation_alias="KGENTS_EXPECTED_WORKERS",
        description="The services /health/saas speaks of",
    )
    reads_url: str | None = Field(
        None,
        validation_alias="KGENTS_READS_URL",
        description="Where usage questions asked here are passed on to; None where a gateway routes them",
    )
    crash_at: str | None = Field(None, validation_alias="KGENTS_CRASH_AT")

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        if 0 < self.rate_limit_events_per_second * BURST_SECONDS < self.max_batch_events:
            raise ValueError(
                f"KGENTS_RATE_LIMIT_EVENTS_PER_SECOND times {BURST_SECONDS} must be at least"
                " KGENTS_MAX_BATCH_EVENTS, or a whole batch could never pass"
            )
        if 0 < self.rate_limit_bytes_per_second * BURST_SECONDS < self.max_batch_bytes:
            raise ValueError(
                f"KGENTS_RATE_LIMIT_BYTES_PER_SECOND times {BURST_SECONDS} must be at least"
                " KGENTS_MAX_BATCH_BYTES, or a whole batch could never pass"
            )
        if 0 < self.tenant_stored_bytes < 2 * self.max_batch_bytes:
            raise ValueError("KGENTS_TENANT_STORED_BYTES must be at least twice KGENTS_MAX_BATCH_BYTES")
        if self.max_held_bytes < 2 * self.max_batch_bytes:
            raise ValueError("KGENTS_MAX_HELD_BYTES must be at least twice KGENTS_MAX_BATCH_BYTES")
        return self

    @field_validator("expected_workers", mode="before")
    @classmethod
    def _names(cls, value: object) -> object:
        return tuple(s.strip() for s in value.split(",") if s.strip()) if isinstance(value, str) else value


class AgentsSettings(ServiceSettings):
    """The environment of the process that lets agents connect to NATS (`python -m kgents_api agents`)."""

    port: int = Field(8004, validation_alias="KGENTS_PORT", ge=0, le=65535)
    keyring_file: Path = Field(validation_alias="KGENTS_KEYRING_FILE")
    redis_url: RedisUrl | None = Field(None, validation_alias="REDIS_URL", description=REDIS_URL_TEXT)
    issuer_seed_file: Path = Field(
        validation_alias="KGENTS_NATS_ISSUER_SEED_FILE",
        description="The account key that signs agents' users: whoever has it can let anybody in",
    )
    responder_seed_file: Path = Field(
        validation_alias="KGENTS_NATS_RESPONDER_SEED_FILE", description="Of the user that hears the questions"
    )
    cutter_seed_file: Path = Field(
        validation_alias="KGENTS_NATS_CUTTER_SEED_FILE", description="Of the user that ends connections"
    )
    cut_seconds: float = Field(
        1,
        validation_alias="KGENTS_AGENTS_CUT_SECONDS",
        gt=0,
        description="Between two looks for agents whose credentials have ended, or who send too fast",
    )
    rate_limit_events_per_second: int = Field(
        10_000,
        validation_alias="KGENTS_RATE_LIMIT_EVENTS_PER_SECOND",
        ge=0,
        description="What a tenant's agents may publish straight to NATS, besides what it sends to the door;"
        " 0 for no limit",
    )
    rate_limit_bytes_per_second: int = Field(
        8 * 1024 * 1024,
        validation_alias="KGENTS_RATE_LIMIT_BYTES_PER_SECOND",
        ge=0,
        description="The same in bytes",
    )
    pause_seconds: float = Field(
        10,
        validation_alias="KGENTS_AGENTS_PAUSE_SECONDS",
        gt=0,
        description="How long a tenant's agents are kept out that went beyond; twice as long each time again",
    )

    def as_user(self, inbox_prefix: str, seed: Path) -> ServiceSettings:
        """The same, connecting as one of its two users."""
        return self.model_copy(
            update={
                "nats_nkey_seed_file": seed,
                "nats_inbox_prefix": inbox_prefix,
                "nats_user": None,
                "nats_password": None,
                "nats_token": None,
            }
        )
