"""Training: job files, data, the trainer, checkpoints."""
