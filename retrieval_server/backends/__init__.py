"""Search engines inside the server, one folder for each kind of index."""
