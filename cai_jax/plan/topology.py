"""TPUs by the names that users rent them under, with what their makers publish about a chip."""

from __future__ import annotations

import dataclasses
import os
import re

import jax

from cai_jax.settings import ConfigError


@dataclasses.dataclass(frozen=True)
class Chip:
    """What is one device to JAX: a TPU chip, or one of its two halves.

    Rates are those of Google Cloud's documentation (2026-11).

    Attributes:
      hbm: bytes of memory that the compiler gives to programs.
      flops: dense bfloat16 FLOP/s.
      hbm_rate: bytes a second between memory and the chip.
      ici_rate: bytes a second that a chip receives over all its links to its neighbours.
      dcn_rate: bytes a second that a chip's part of its host's network takes in, between slices.
      devices: that make a chip.
    """

    hbm: float
    flops: float
    hbm_rate: float
    ici_rate: float
    dcn_rate: float
    devices: int = 1


GIB = 2**30
# "Bidirectional ICI bandwidth" counts both directions; half of that comes in. A host's network
# cards are shared by its chips.
CHIPS = {
    "v4": Chip(30.75 * GIB, 275e12, 1228e9, 300e9, 6.25e9),
    "v5e": Chip(15.75 * GIB, 197e12, 819e9, 200e9, 3.125e9),
    "v5p": Chip(95.74 * GIB, 459e12, 2765e9, 600e9, 6.25e9),
    "v6e": Chip(31.25 * GIB, 918e12, 1640e9, 400e9, 12.5e9),
    "v7x": Chip(94.75 * GIB, 1153.5e12, 3690e9, 300e9, 6.25e9, devices=2),
}
# A name's number counts chips on some kinds and TensorCores, two to a chip, on others.
CORES = {"v4": 2, "v5p": 2, "v7x": 2, "v5e": 1, "v6e": 1}
EXTERNAL = {"v7x": "tpu7x"}  # how the compiler calls a kind, where otherwise
FLAT = {4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16", 2048: "8x16x16",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Topology:
    """Attributes: name as given; chip, of a device; devices of all slices; slices."""

    name: str
    chip: Chip
    devices: list[jax.Device]
    slices: int

    @property
    def chips(self) -> int:
        """How many there are to pay for."""
        return len(self.devices) // self.chip.devices


def without_a_tpu() -> None:
    """Has libtpu compile and look for no TPU; before JAX's first use of a device."""
    jax.config.update("jax_platforms", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else it looks for one for minutes
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")  # else it complains of none
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # the same, whatever the target
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # none is locked by compiling


def layout_of(name: str) -> tuple[str, str]:
    """("v5e", "4x4") of a name such as "v5e-16", or of a layout such as "v5e:4x4".

    Raises:
      ConfigError: an unknown kind, or a size that has no layout.
    """
    match = re.fullmatch(r"(v\d+[a-z]?)(?:-(\d+)|:(\d+(?:x\d+)+))", name)
    if not match or match[1] not in CHIPS:
        raise ConfigError(
            f"--topology={name} is unknown; write a kind and its size, such as v5e-16, or its "
            f"layout, such as v5e:4x4. Kinds: {', '.join(CHIPS)}."
        )
    kind = match[1]
    if match[3]:
        return kind, match[3]
    layouts = FLAT if CORES[kind] == 1 else CUBES
    chips, left = divmod(int(match[2]), CORES[kind])
    if left or chips not in layouts:
        sizes = ", ".join(str(n * CORES[kind]) for n in layouts)
        raise ConfigError(f"--topology={name} has no usual layout; sizes of {kind}: {sizes}.")
    return kind, layouts[chips]


def topology(name: str, slices: int = 1) -> Topology:
    """What is to be compiled for; needs libtpu, and no TPU.

    Raises:
      ConfigError: a name that is unknown, or no libtpu.
    """
    from jax.experimental import topologies

    kind, layout = layout_of(name)
    more = {"chip_config_name": "megacore"} if kind == "v4" else {}  # a chip is one device
    try:
        found = topologies.get_topology_desc(
            platform="tpu",
            topology_name=f"{EXTERNAL.get(kind, kind)}:{layout}",
            num_slices=slices,
            **more,
        )
    except Exception as error:  # libtpu's and JAX's own kinds
        said = str(error).splitlines()[0]
        raise ConfigError(
            f"--topology={name} cannot be compiled for ({said}); compiling needs the extra [plan]: "
            "pip install -e '.[plan]'."
        ) from error
    return Topology(name, CHIPS[kind], list(found.devices), slices)
