"""Adapters to Agent Lightning 0.x: a `LitAgent` for each of its two interfaces. Neither loads with AGL 1.0."""
