"""Legal lives by chance; what a change tells is in `life`."""

from __future__ import annotations

import random
from collections.abc import Callable

from kgents_devstack.stripe.events import Books
from kgents_devstack.stripe.life import ENDED, Life
from kgents_devstack.stripe.objects import START

# What a status may become. `trialing`, `paused` and `unpaid` are reached by `become` alone.
NEXT = {
    "incomplete": ("active", "trialing", "incomplete_expired"),
    "trialing": ("active", "past_due", "paused", "canceled"),
    "active": ("past_due", "paused", "canceled"),
    "past_due": ("active", "unpaid", "canceled"),
    "unpaid": ("active", "canceled"),
    "paused": ("active",),
}


def random_life(
    roll: random.Random,
    same_second: float = 0.5,
    longest: int = 9,
    *,
    with_money: bool = False,
    books: Books | None = None,
) -> Life:
    """A legal life with few distinct values, so that states come back.

    Args:
        same_second: Probability that a change comes within the second of the one before.
        longest: At most so many changes, less one.
        with_money: Also pay, fail to pay, refund and dispute; the customer is told of first.
    """
    life = Life(
        basil=with_money or roll.random() < 0.7,
        at=START + roll.random(),
        books=books,
        with_customer=with_money,
    )
    for _ in range(roll.randrange(1, longest)):
        if roll.random() < same_second:
            life.wait(roll.uniform(0.001, 0.3))
        else:
            life.wait(roll.choice((1.1, 2.5, 60, 86_400)))
        roll.choice(_possible(life, roll, with_money=with_money))()
        if life.now["status"] in ENDED:
            break
    return life


def _possible(life: Life, roll: random.Random, *, with_money: bool) -> list[Callable[[], Life]]:
    status = life.now["status"]
    options: list[Callable[[], Life]] = [
        life.keep if life.now["cancel_at_period_end"] else life.cancel_at_period_end,
        lambda: life.change_item(quantity=1 + life.now["items"]["data"][0]["quantity"] % 3),
        lambda: life.change(metadata={**life.now["metadata"], "note": str(roll.random())}),
        life.renew,
    ]
    if not with_money:
        return options + [lambda s=s: life.become(s) for s in NEXT.get(status, ())]
    options += [life.pay, life.pay, life.fail, life.end] if life.invoice["status"] == "open" else [life.end]
    charge = life.charge
    if charge is not None and charge["amount_refunded"] + 100 <= charge["amount"]:
        options.append(lambda: life.refund(100))
    if charge is not None and not charge["disputed"]:
        options.append(life.dispute)
    return options
