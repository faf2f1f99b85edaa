"""Adapters to Agent Lightning 0.x: a `LitAgent` for each of its two interfaces. AGL 1.0 can not load them."""
