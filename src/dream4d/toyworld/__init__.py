"""The toy world: articulated toy characters whose 4D truth is known. It trains the built-in priors and measures them."""
