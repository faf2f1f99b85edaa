"""s3-agent: search agents (s3 first) for Agent Lightning deployments. Importing this package stays light: no torch."""
