"""Search engines inside the server: one small class each."""
