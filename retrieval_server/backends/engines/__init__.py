"""Search engines that others run: one module each, and what they share."""
