"""What billing is told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from kgents_common.settings import ServiceSettings


class BillingSettings(ServiceSettings):
    """Billing's environment."""

    port: int = Field(8002, validation_alias="KGENTS_PORT", ge=0, le=65535)
    database_url: str = Field(validation_alias="DATABASE_URL")
    keyring_file: Path = Field(validation_alias="KGENTS_KEYRING_FILE")
    redis_url: str | None = Field(None, validation_alias="REDIS_URL")
    stripe_api_key: SecretStr | None = Field(
        None,
        validation_alias="STRIPE_API_KEY",
        description="A restricted key that reads events and what they are about: the README lists it",
    )
    stripe_api_base: str | None = Field(None, validation_alias="STRIPE_API_BASE")
    stripe_per_second: int = Field(10, validation_alias="KGENTS_STRIPE_PER_SECOND", ge=1, le=100)
    poll_seconds: float = Field(
        300,
        validation_alias="KGENTS_STRIPE_POLL_SECONDS",
        gt=0,
        description="Between two looks at Stripe's list of events",
    )
    poll_first_days: int = Field(
        3,
        validation_alias="KGENTS_STRIPE_POLL_FIRST_DAYS",
        ge=0,
        le=30,
        description="How far back the very first look goes",
    )
    survey_seconds: float = Field(
        86400,
        validation_alias="KGENTS_STRIPE_SURVEY_SECONDS",
        gt=0,
        description="Between two looks at every subscription",
    )
    grace_days: float | None = Field(
        None,
        validation_alias="KGENTS_BILLING_GRACE_DAYS",
        ge=0,
        description="How long a past-due subscription stays usable; to its period's end if unset",
    )
    refunds_from_charges: bool = Field(False, validation_alias="KGENTS_BILLING_REFUNDS_FROM_CHARGES")
    tells_zero_payments: bool = Field(False, validation_alias="KGENTS_BILLING_ZERO_PAYMENTS")
    crash_at: str | None = Field(None, validation_alias="KGENTS_CRASH_AT")
