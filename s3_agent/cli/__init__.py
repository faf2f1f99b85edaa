"""The command line: options and printing. The work is in the packages below it."""
