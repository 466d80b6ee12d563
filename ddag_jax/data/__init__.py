"""From the prepared store to the device: sampling, loading, augmentation.

Importing it registers the published datasets with tensorflow-datasets.
"""

from ddag_jax.datasets import builder  # noqa: F401
