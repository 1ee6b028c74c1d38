"""Real servers and SaaS stand-ins on loopback, for demo, tests and benchmarks; never part of a service."""
