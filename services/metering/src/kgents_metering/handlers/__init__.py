"""Every way into metering: the stream, HTTP, timers, commands."""
