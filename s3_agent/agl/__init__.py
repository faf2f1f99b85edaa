"""The Agent Lightning side: only this package imports agentlightning and verl, and only when it trains."""
