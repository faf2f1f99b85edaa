"""What only a GPU can tell: `bash tests/gpu/run.sh` measures it in minutes, docs/gpu.md says what each figure means."""
