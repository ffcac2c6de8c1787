"""TPUs to compile for, without a TPU. Needs `pip install -e '.[plan]'`.

To be imported before JAX, which would look for a TPU at its first use.
"""

from __future__ import annotations

import math
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the TPU is only compiled for
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for one for minutes
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else it complains that there is none
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # none is locked by compiling

import jax
from jax.experimental import topologies

from cai_jax.mesh import MESH_AXES, make_mesh
from cai_jax.models.config import ModelConfig

LLAMA_8B = ModelConfig(
    vocab_size=128256,
    embed=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    head_dim=128,
    mlp=14336,
    rope_theta=500000.0,
    norm_eps=1e-5,
    tied_embeddings=False,
    context=8192,
)


def mesh_for(topology: str, **sizes: int) -> jax.sharding.Mesh:
    """A mesh over the devices of a topology such as "v5e:4x4"; axes not given have size 1.

    With slice=N, over N such topologies.
    """
    found = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, num_slices=sizes.get("slice", 1)
    )
    return make_mesh(dict.fromkeys(MESH_AXES, 1) | sizes, found.devices)


def local_bytes(tree) -> int:
    """Bytes of one device's part of ShapeDtypeStructs."""
    return sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
    )
