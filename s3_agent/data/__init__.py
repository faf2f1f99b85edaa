"""Tasks and what is prepared for them."""
