"""Describes this machine, or a described one: processors, memory, disks, GPUs, environment, and folders of models."""
