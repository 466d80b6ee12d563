"""Rendered people, dataset builders, sampling, loading and augmentation."""
