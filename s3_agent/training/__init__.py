"""A training run from its recipe to its trained policy: start, resume, compare, export."""
