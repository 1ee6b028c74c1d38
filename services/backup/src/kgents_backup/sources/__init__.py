"""Ways in: what the streams and the databases hold, read without changing them."""
