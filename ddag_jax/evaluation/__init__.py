"""Embedding, ranking and the published protocols."""
