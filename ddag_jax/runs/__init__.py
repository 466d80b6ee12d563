"""A run from its first step to its evaluation: everything that has effects."""
