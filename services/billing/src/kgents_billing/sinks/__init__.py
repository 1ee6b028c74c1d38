"""What billing writes to and asks: Postgres, the bus, Stripe."""
