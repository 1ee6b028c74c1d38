"""Where the api reads from: one module for each neighbour it follows."""
