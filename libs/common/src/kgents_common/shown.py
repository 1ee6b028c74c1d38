"""Text of strangers where it is read: terminals and spreadsheets obey what they are shown.

It changes what is shown, never what is stored.
"""

from __future__ import annotations

# What a spreadsheet takes for a formula, or for the end of a cell before one (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def line(text: object) -> str:
    """On one line of a terminal: what is not printable (escapes, line feeds, reversals) is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def body(text: bytes) -> str:
    """As lines on a terminal: the same, its line feeds and tabs left in place."""
    decoded = text.decode(errors="backslashreplace")
    return "".join(c if c in "\n\t" else line(c) for c in decoded)


def cell(text: str) -> str:
    """As text in a cell of a CSV file: one that begins as a formula does has an apostrophe before it."""
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text
