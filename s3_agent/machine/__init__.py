"""What this machine has: processors, memory, disk, GPUs, and the folders of models on it."""
