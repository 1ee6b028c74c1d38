"""Every way out of the api."""
