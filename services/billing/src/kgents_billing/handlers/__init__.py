"""The ways in: the stream, timers, questions over HTTP, an operator's commands."""
