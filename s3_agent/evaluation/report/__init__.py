"""The report: evaluations and training runs as one page, with every trajectory in it."""
