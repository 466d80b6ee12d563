"""Measurements of speed, memory and scale; each is a command: `python -m benchmarks.NAME`."""
