"""What backup does, step by step, over its ports: the one room this service has beside the usual ones."""
