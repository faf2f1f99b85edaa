"""The command line: options and printing. The work is in the rooms below."""
