"""Looks at a recipe and a machine before a run is spent on them: every finding says what, why and what fixes it.

The checks are pure functions of a `Case`, a snapshot of the recipe, of what verl is told, of the models, of the files
and of the machine, so that each fault can be planted in a test and a recipe can be checked against a machine that is
only described. What reads files and asks the system is in `gather`, `host_snapshot` and `models`.
"""
