"""What engines of others share as kinds of index."""
