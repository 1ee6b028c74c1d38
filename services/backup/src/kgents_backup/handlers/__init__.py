"""Ways in: the clock, and the operator's commands."""
