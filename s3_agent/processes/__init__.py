"""The processes of a run: their commands, ports and GPUs, starting, watching and stopping them."""
