"""What strangers wrote steers no terminal and no spreadsheet."""

from __future__ import annotations

import csv
import io

import pytest

from kgents_common import shown


@pytest.mark.parametrize(
    "steering", ["\x1b[2J", "\x9b31m", "\r", "\x08", "\u202e", "\u2066", "\u200b", "\x07", "\x7f"]
)
def test_what_steers_a_terminal_is_shown_as_an_escape(steering: str) -> None:
    """Rule: a line is one line, and says what was written."""
    for told in (shown.line(f"a{steering}b"), shown.body(f"a{steering}b".encode())):
        assert told.isprintable()
        assert told.startswith("a\\")
    assert shown.line("two\nlines") == "two\\nlines"
    assert shown.body(b"two\nlines\tand \xff") == "two\nlines\tand \\xff"


@pytest.mark.parametrize(
    "text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =cmd|' /C calc'!A0"]
)
def test_a_cell_that_begins_as_a_formula_does_is_text(text: str) -> None:
    """Rule: OWASP's characters, whatever blanks precede them; the value behind the apostrophe is whole."""
    line = io.StringIO()
    csv.writer(line).writerow([shown.cell(text)])
    assert next(csv.reader(io.StringIO(line.getvalue(), newline=""))) == [f"'{text}"]


def test_an_ordinary_cell_stays() -> None:
    assert shown.cell("small-1") == "small-1"
