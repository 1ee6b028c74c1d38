"""Dead letters: messages that can never be handled, kept whole in a schema's own table, told of on the bus.

Every schema that owns some has a table `dead` with the columns of `DeadLetter`; it may have more of its own.
"""

from kgents_common.dead_letters.commands import (
    add_dead_commands,
    discard_letter,
    list_letters,
    print_letter,
)
from kgents_common.dead_letters.letter import Burial, DeadLetter
from kgents_common.dead_letters.mirror import Mirror
from kgents_common.dead_letters.table import DeadLetters, bury

__all__ = [
    "Burial",
    "DeadLetter",
    "DeadLetters",
    "Mirror",
    "add_dead_commands",
    "bury",
    "discard_letter",
    "list_letters",
    "print_letter",
]
