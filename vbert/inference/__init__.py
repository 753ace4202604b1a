"""Using a trained model: images and texts in, answers out."""
