"""Ways out: stores, streams that are restored, databases that are loaded."""
