"""Which of two representations a caller would rather have (RFC 9110 section 12.5.1); it refuses nobody."""

from __future__ import annotations

JSON = "application/json"
CSV = "text/csv"


def wants_csv(accept: str) -> bool:
    """Whether the header prefers CSV to JSON; JSON where it says neither, both alike, or nothing readable.

    Args:
        accept: The values of all `Accept` headers, joined by commas.
    """
    csv = quality(accept, CSV)
    return csv > 0 and csv > quality(accept, JSON)


def quality(accept: str, media_type: str) -> float:
    """The weight of a media type, 0 to 1: that of the most specific range that has it, 0 where none has."""
    kind = media_type.partition("/")[0]
    ranks = {media_type: 3, f"{kind}/*": 2, "*/*": 1}
    found = (0, 0.0)
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        rank = ranks.get(name, 0)
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = _weight(value.strip())
        if rank > found[0]:
            found = (rank, weight)
    return found[1]


def _weight(text: str) -> float:
    """`qvalue`: 0 to 1 with at most three decimals; what is none counts as not acceptable."""
    digits = text.replace(".", "", 1)
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 4 or not text[:1].isdecimal():
        return 0.0
    return min(float(text), 1.0)
