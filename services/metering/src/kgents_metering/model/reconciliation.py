"""When the ledger's value of an hour and OpenMeter's are the same, exactly; it asks nobody."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

# Half a unit in the last place of a float64 of magnitude 1: the relative error of one operation.
UNIT_ROUNDOFF = Decimal(2) ** -53
LARGEST_EXACT_INTEGER = Decimal(2**53)


@dataclass(frozen=True, slots=True)
class Expected:
    """What OpenMeter should say of an hour.

    Attributes:
        value: The ledger's sum, exact.
        count: Of how many values.
        largest: The largest of them, by magnitude.
        is_integral: Whether every one was written without a fraction.
    """

    value: Decimal
    count: int
    largest: Decimal
    is_integral: bool

    @property
    def tolerance(self) -> Decimal:
        """By how much a correct answer may differ: what float64 may lose of these very numbers, and no more.

        OpenMeter adds in float64 unless told otherwise (`aggregation.enableDecimalPrecision`). Integers below
        2^53 lose nothing. Else each number loses at most half a unit in its last place, and each addition as
        much of the sum so far (N. Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2).
        """
        magnitude = self.count * abs(self.largest)
        if self.is_integral and magnitude < LARGEST_EXACT_INTEGER:
            return Decimal(0)
        return self.count * magnitude * UNIT_ROUNDOFF

    def agrees(self, theirs: Decimal) -> bool:
        """Whether this is OpenMeter's answer."""
        return abs(self.value - theirs) <= self.tolerance

    def without(self, value: Decimal) -> Expected:
        """The same, OpenMeter not having so much of it."""
        return Expected(self.value - value, self.count, self.largest, self.is_integral)


NOTHING = Expected(Decimal(0), 0, Decimal(0), True)
