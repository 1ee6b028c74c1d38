"""What an operator's command is given is looked at before anything is kept."""

from __future__ import annotations

import argparse

import pytest

from kgents_billing.handlers import command_owners


@pytest.mark.parametrize("name", ["", "sub_x'y", "sub x", "s" * 256])
def test_what_can_be_no_id_is_given_to_nobody(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Rule: an unset variable of a shell names no subscription."""
    parser = argparse.ArgumentParser()
    command_owners.add_to(parser.add_subparsers())
    with pytest.raises(SystemExit):
        parser.parse_args(["assign", "subscription", name, "acme"])
    assert "no id of Stripe's" in capsys.readouterr().err
