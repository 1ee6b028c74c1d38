"""What the api decides, as values; it imports no framework and no client."""
