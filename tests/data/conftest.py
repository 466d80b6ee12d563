"""The small prepared SYSU-MM01 of tests/datasets, for what reads it."""

from tests.datasets.conftest import data_dir, make_tree, tree

__all__ = ["data_dir", "make_tree", "tree"]
