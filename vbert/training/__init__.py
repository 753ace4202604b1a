"""Training: one loop, its checkpoints, its optimisers and the order of samples."""
