"""DDAG (Ye et al., ECCV 2020)."""
