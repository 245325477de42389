"""User-item graph over the training log -> chains: user, item, neighbour, item."""
