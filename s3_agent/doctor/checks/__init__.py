"""The checks, one module for each kind. A check is a pure function from a `Case` to its findings."""
