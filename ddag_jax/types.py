"""Types shared by the package, and the glossary of dimensions in shape annotations.

====  ==============================================================================
n     identities in a batch (on one device: its share of them)
m     images of each identity in each modality
k     images in a batch, visible before infrared: k = 2 * n * m (with a second visible view 3)
h, w  height and width of an image or of a feature map, in pixels or cells
c     channels of the pooled feature (2048 for ResNet-50)
p     horizontal parts (stripes)
y     classes of the classifier: identities in training
====  ==============================================================================
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int, UInt8

Array = jax.Array | np.ndarray


class Batch(NamedTuple):
    """One identity-balanced training batch, before augmentation.

    Sharded over its first axis, so that all images of an identity are on one device.
    """

    visible: UInt8[Array, "n m h w 3"]
    infrared: UInt8[Array, "n m h w 3"]
    labels: Int[Array, " n"]
    """Class of each identity slot, 0 ... classes - 1, without repetition."""
