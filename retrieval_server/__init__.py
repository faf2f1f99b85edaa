"""A retrieval server with the wire contract of Search-R1, s3 and Agent Lightning clients; importing it is cheap."""
