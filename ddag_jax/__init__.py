"""DDAG (Ye et al., ECCV 2020) in JAX and Flax: visible-infrared person re-identification."""

__version__ = "0.1.0"
