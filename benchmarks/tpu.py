"""TPUs to compile for, without a TPU. Needs `pip install -e '.[plan]'`."""

from __future__ import annotations

import jax

from cai_jax.mesh import MESH_AXES, make_mesh
from cai_jax.plan.topology import topology, without_a_tpu


def mesh_for(name: str, **sizes: int) -> jax.sharding.Mesh:
    """A mesh over the devices of a topology such as "v5e:4x4"; axes not given have size 1.

    With slice=N, over N such topologies. To be called before anything else uses a device.
    """
    without_a_tpu()
    found = topology(name, sizes.get("slice", 1))
    return make_mesh(dict.fromkeys(MESH_AXES, 1) | sizes, found.devices)
