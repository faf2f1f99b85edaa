"""The link to Agent Lightning: only this package imports agentlightning and verl, and only in processes that train."""
