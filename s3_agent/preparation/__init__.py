"""From documents and questions to the task files that a training run reads."""
