"""Every way into the api: HTTP, and the operator's commands."""
