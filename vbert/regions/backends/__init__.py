"""Who runs a detector: torchvision, detectron2, or bottom-up attention in PyTorch alone."""
