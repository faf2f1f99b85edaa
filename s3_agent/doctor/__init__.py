"""Checks a recipe and a machine before a run starts. Every finding names a problem, its reason and the fix.

Called by `s3-agent doctor` and before each training. The checks are pure functions of a `Case`: a snapshot of the
recipe, of verl's configuration, of the models, of the files and of the machine. So a test can create any fault, and a
recipe can be checked against a machine that is only described. Only `gather`, `inputs` and `s3_agent.machine` read
files and ask the system.
"""
