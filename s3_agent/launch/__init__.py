"""One command, many processes: what a run starts, watches and stops."""
