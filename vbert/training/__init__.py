"""Training: one loop, its checkpoints, the order of samples, and the batches of image–text objectives."""
