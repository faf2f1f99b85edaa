"""A worker process: how it is forked, what it plays, and what it sends back."""
