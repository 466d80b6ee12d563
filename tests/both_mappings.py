"""Five training steps by shard_map and by pmap, which must end in the same bits.

python -m tests.both_mappings METHOD DEVICES, with METHOD as in tests.five_steps. A process of its
own, in which XLA fuses as it does for users: it is what makes the two programs round alike.
"""

import sys

import chex
import jax
import numpy as np

from ddag_jax.parallel import device_mesh
from tests import five_steps

if __name__ == "__main__":
    name, devices = sys.argv[1:]
    jax.config.update(
        "jax_disable_most_optimizations", True
    )  # LLVM's: it compiles in half the time
    mesh = device_mesh(jax.devices()[: int(devices)])
    one, other = (
        five_steps.run(mesh, np.float64, mapping, name) for mapping in ("shard_map", "pmap")
    )
    chex.assert_trees_all_equal(one, other)
