"""What billing decides, as values in and values out; it imports no framework and no client."""
