"""The published data sets: where their files are, how they are downloaded, and how their rows are read."""
