"""What billing is told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import NoDecode

from kgents_billing.model.known import Options
from kgents_common import subjects
from kgents_common.database import DatabaseUrl
from kgents_common.redis_client import REDIS_URL_TEXT, RedisUrl
from kgents_common.settings import ServiceSettings


class BillingSettings(ServiceSettings):
    """Billing's environment."""

    port: int = Field(8002, validation_alias="KGENTS_PORT", ge=0, le=65535)
    database_url: DatabaseUrl = Field(validation_alias="DATABASE_URL")
    keyring_file: Path = Field(validation_alias="KGENTS_KEYRING_FILE")
    redis_url: RedisUrl | None = Field(None, validation_alias="REDIS_URL", description=REDIS_URL_TEXT)
    stripe_mode: Literal["live", "test"] = Field(
        validation_alias="KGENTS_STRIPE_MODE",
        description="Whether this system is about real money: events of the other mode are left",
    )
    stripe_accounts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias="KGENTS_STRIPE_ACCOUNTS",
        description="Connected accounts whose events count, `acct_1` (its metadata says whose) or"
        " `acct_1=tenant` (all of it is that tenant's); of any other account nothing is believed",
    )
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
        description="How long a subscription stays usable once it is past due; to its period's end and"
        " at most a month if unset",
    )
    refunds_from_charges: bool = Field(False, validation_alias="KGENTS_BILLING_REFUNDS_FROM_CHARGES")
    tells_zero_payments: bool = Field(False, validation_alias="KGENTS_BILLING_ZERO_PAYMENTS")
    crash_at: str | None = Field(None, validation_alias="KGENTS_CRASH_AT")

    @property
    def accounts(self) -> dict[str, str | None]:
        """Connected accounts whose events count, each with the tenant all of it is of."""
        pairs = (one.partition("=") for one in self.stripe_accounts)
        return {account: tenant or None for account, _, tenant in pairs}

    def options(self) -> Options:
        """What decisions depend on."""
        return Options(
            refunds_from_charges=self.refunds_from_charges,
            tells_zero_payments=self.tells_zero_payments,
            livemode=self.stripe_mode == "live",
            accounts=self.accounts,
        )

    @field_validator("stripe_accounts", mode="before")
    @classmethod
    def _split_accounts(cls, value: object) -> object:
        return tuple(s.strip() for s in value.split(",") if s.strip()) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for one in self.stripe_accounts:
            account, _, tenant = one.partition("=")
            if not account.startswith("acct_") or not (subjects.is_tenant(tenant) or one == account):
                raise ValueError("KGENTS_STRIPE_ACCOUNTS is a list of acct_… or acct_…=tenant")
        key = "" if self.stripe_api_key is None else self.stripe_api_key.get_secret_value()
        other = "test" if self.stripe_mode == "live" else "live"
        if key[2:].startswith(f"_{other}_"):
            raise ValueError(f"STRIPE_API_KEY is of {other} mode, KGENTS_STRIPE_MODE is {self.stripe_mode}")
        return self
