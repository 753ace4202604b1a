"""Models handed on: a self-contained folder, its card, and the same for transformers."""
