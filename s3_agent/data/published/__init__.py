"""The published data sets: the places of their files, their download, and the reading of their rows."""
