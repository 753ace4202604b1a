"""Backends that run detectors: torchvision, detectron2, and bottom-up attention in PyTorch alone."""
