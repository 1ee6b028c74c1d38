"""What backup decides, as values: names, manifests, segments, lines, plans, retention; it does no I/O."""
