"""Settings are complete or the process does not start, and they never show a secret."""

from __future__ import annotations

import pytest
from pydantic import Field, SecretStr

from kgents_common.errors import ConfigurationError
from kgents_common.masking import MASK, masked
from kgents_common.settings import ServiceSettings


class Example(ServiceSettings):
    url: str = Field(validation_alias="EXAMPLE_URL")
    token: SecretStr = Field(validation_alias="EXAMPLE_TOKEN")


def test_every_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: an operator learns all that is missing from one start."""
    for name in ("NATS_SERVERS", "EXAMPLE_URL", "EXAMPLE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError) as error:
        Example.from_environment()
    for name in ("NATS_SERVERS", "EXAMPLE_URL", "EXAMPLE_TOKEN"):
        assert name in str(error.value)


def test_secrets_are_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: `--check` prints the effective settings with secrets masked."""
    monkeypatch.setenv("NATS_SERVERS", "nats://u:pw-one@a:4222, nats://b:4222")
    monkeypatch.setenv("EXAMPLE_URL", "postgresql://user:pw-two@db:5432/x")
    monkeypatch.setenv("EXAMPLE_TOKEN", "pw-three")
    settings = Example.from_environment()
    shown = "\n".join(f"{k}={v}" for k, v in settings.masked().items())
    assert settings.nats_servers == ("nats://u:pw-one@a:4222", "nats://b:4222")
    assert "db:5432/x" in shown
    assert "pw-" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "nats://hush@a:4222",
        "nats://u:hush@a:4222,nats://u:hush@b:4222",
        "redis://:hush@h:6379/0",
        "redis://:hu/sh?hush#hush@h:6379/0",
        "redis://h/0?password=hush&db=1",
        "redis://h/0?db=1&p%61ssword=hush",
        "postgresql:///db?host=/run&user=u&password=hush&sslmode=require",
        "postgresql://u:a@hush@h/db?sslpassword=hush",
        "host=h user=u password=hush dbname=d",
        r"host=h password = 'hu\'sh hush' dbname=d",
        'host=h password="hush hush" dbname=d',
        "https://h/hook?api_key=hush#access_token=hush",
        "https://h/?X-Amz-Signature=hush&X-Amz-Credential=hush",
        "AccountName=n;AccountKey=hush==;Suffix=s",
    ],
)
def test_no_form_of_a_connection_string_shows_its_secret(text: str) -> None:
    """Rule: credentials before an @, parameters of a URL, key=value forms."""
    shown = masked(text)
    assert "hush" not in shown
    assert "hu" not in shown.replace("https", "")
    assert MASK in shown


@pytest.mark.parametrize(
    "text",
    [
        "nats://a:4222",
        "postgresql://db:5432/x?sslmode=require&application_name=a",
        "/etc/kgents/keys.json",
        "info",
        "host=h dbname=d sslmode=require",
    ],
)
def test_what_holds_no_secret_is_shown_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_a_wrong_value_is_refused_without_being_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule: an error message names the variable, never its value."""
    monkeypatch.setenv("NATS_SERVERS", "nats://a:4222")
    monkeypatch.setenv("KGENTS_PORT", "secret-port")
    with pytest.raises(ConfigurationError) as error:
        ServiceSettings.from_environment()
    assert "KGENTS_PORT" in str(error.value)
    assert "secret-port" not in str(error.value)
