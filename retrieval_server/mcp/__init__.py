"""The retrieval server's tools for assistants, by the Model Context Protocol. Needs the extra `mcp`."""
