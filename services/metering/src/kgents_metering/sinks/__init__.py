"""Every way out of metering."""
