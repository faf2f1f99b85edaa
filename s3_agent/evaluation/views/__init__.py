"""Tables of an evaluation or a training run, for a terminal and as Markdown."""
