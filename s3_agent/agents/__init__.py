"""Search agents: algorithms that turn a task into an episode."""
