"""The door: authenticated CloudEvents come in, and are durable before the answer goes out."""
