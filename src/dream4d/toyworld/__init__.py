"""The toy world: articulated toys whose 4D truth is known. It trains the built-in priors and measures them."""
