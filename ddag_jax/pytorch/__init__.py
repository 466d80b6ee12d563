"""Weights to and from PyTorch: the one place that knows its key names and layouts."""
