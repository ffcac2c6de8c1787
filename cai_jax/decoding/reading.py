"""The engine's programs that read: forced tokens into slots, options behind them, and copies.

Each calls one jitted layer after the other, so that a new size compiles a layer and not a stack of
them; a call reads so many tokens that starting each layer from the host costs nothing. They work on
R of the cache's S slots. Static are the model's shape, the compute dtype, the mesh and buffer
sizes. On a mesh slots are split over data and fsdp and heads over tensor.
"""

from __future__ import annotations

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cai_jax.mesh import constrain, fitted
from cai_jax.models import kv_cache, slot_attention
from cai_jax.models.cached import Prefix, block, embedded, final_logits, project
from cai_jax.models.config import ModelConfig
from cai_jax.models.kv_cache import KVCache
from cai_jax.models.slot_attention import by_kernel, read_attention
from cai_jax.models.tiles import Tiles, among, tiled_attention
from cai_jax.models.transformer import Params

LOGITS = ("slots", "vocab")  # names of the axes of the logits that are kept
STREAM = (None, "slots")  # of the residual stream [D, N]

_STATIC = ("config", "dtype", "mesh")
_STATIC_OF_LAYER = (*_STATIC, "window")  # a program for each window, not for each layer


@flax.struct.dataclass
class Packed:
    """Where the tokens of a call come from and go to, the same for all layers.

    Attributes:
      tiles: of the list of N tokens.
      slots: int32[R], distinct; S marks a row that is only padding.
      ends: int32[R], where each row ends in the list.
      to, places: int32[N], the slot and position of each token; S for padding.
    """

    tiles: Tiles
    slots: jax.Array
    ends: jax.Array
    to: jax.Array
    places: jax.Array


def no_logits(config: ModelConfig, slots: int, mesh: Mesh | None) -> jax.Array:
    """What `extend` keeps logits in: zeros float32[S, V]."""
    shape = (slots, config.vocab_size)
    return jnp.zeros(shape, jnp.float32, device=fitted(mesh, shape, *LOGITS))


def extend(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    counts: jax.Array,
    ids: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> tuple[KVCache, jax.Array]:
    """Reads forced tokens into slots.

    Args:
      params: in the layout of `models.unstacked`.
      cache: of S slots; donated.
      last_logits: float32[S, V], after each slot's newest token; donated.
      prefix: shared by all rows, or None.
      slots: int32[R], distinct; S marks a row that is only padding.
      lengths: int32[R], tokens already in each slot.
      counts: int32[R], how many each row reads.
      ids: int32[N], the rows' tokens one after the other, then padding.

    Returns:
      The cache and the logits, rows of `slots` brought up to date.
    """
    static = {"config": config, "dtype": dtype, "mesh": mesh}
    packed = pack(slots, lengths, counts, tokens=len(ids), total=cache.slots)
    x, angles = _embed(params["embed"], ids, packed.places, _before(prefix), **static)
    held, windows = cache.layers, config.windows
    angles = [angles[n] for n in config.rope_of]
    *layers, last = params["layers"]
    for n, layer in enumerate(layers):
        shared, own = prefix and prefix.layer(n), static | {"window": windows[n]}
        x, held[n] = extend_layer(layer, held[n], shared, x, angles[n], packed, **own)
    shared, own = prefix and prefix.layer(len(layers)), static | {"window": windows[-1]}
    head = {name: x for name, x in params.items() if name not in ("embed", "layers")}
    held[-1], last_logits = extend_last(
        last, head, held[-1], last_logits, shared, x, angles[-1], packed, **own
    )
    return KVCache.of_layers(held), last_logits


@functools.partial(jax.jit, static_argnames=("tokens", "total"))
def pack(
    slots: jax.Array, lengths: jax.Array, counts: jax.Array, *, tokens: int, total: int
) -> Packed:
    """Where N `tokens` of rows go in a cache of `total` slots; the rest as `extend` takes it."""
    ends = jnp.cumsum(counts)
    number = jnp.arange(tokens)
    rows = jnp.searchsorted(ends, number, side="right")
    offsets = number - (ends - counts).at[rows].get(mode="clip")
    return Packed(
        tiles=Tiles.of(tokens, lengths, counts),
        slots=slots,
        ends=ends,
        to=slots.at[rows].get(mode="fill", fill_value=total),
        places=lengths.at[rows].get(mode="clip") + offsets,
    )


@functools.partial(jax.jit, static_argnames=_STATIC)
def _embed(embed, ids, places, before, *, config, dtype, mesh):
    x, angles = embedded(config, dtype, embed, ids.ravel(), places.ravel() + before)
    angles = jax.tree.map(lambda a: constrain(a, mesh, *STREAM), angles)
    return constrain(x, mesh, *STREAM), angles


@functools.partial(jax.jit, static_argnames=_STATIC_OF_LAYER, donate_argnames=("held",))
def extend_layer(layer, held, shared, x, angles, packed, *, config, dtype, mesh, window=None):
    """One layer of `extend`: the residual stream after it, and the layer's keys and values."""

    def attend(q, k, v):
        after = _written(held, k, v, packed, mesh)
        limits = _limits(config, window, packed.places)
        return _attended(q, after, shared, packed.slots, packed.tiles, mesh, **limits), after

    x, held = block(config, dtype, layer, x, angles, attend)
    return constrain(x, mesh, *STREAM), held


@functools.partial(
    jax.jit, static_argnames=_STATIC_OF_LAYER, donate_argnames=("held", "last_logits")
)
def extend_last(
    layer, head, held, last_logits, shared, x, angles, packed, *, config, dtype, mesh, window=None
):
    """The last layer, whose keys and values all tokens leave; only rows' last tokens go on."""
    _, k, v = project(config, dtype, layer, x, *angles)
    held = _written(held, k, v, packed, mesh)
    last = jnp.maximum(packed.ends - 1, 0)
    tiles = Tiles.of(len(last), packed.places[last], jnp.ones_like(last))

    def attend(q, k, v):  # k and v are in `held`
        limits = _limits(config, window, packed.places[last])
        return _attended(q, held, shared, packed.slots, tiles, mesh, **limits), None

    x, *angles = (a[:, last] for a in (x, *angles))
    x, _ = block(config, dtype, layer, x, angles, attend)
    scores = final_logits(config, dtype, head, x)
    last_logits = last_logits.at[packed.slots].set(scores, mode="drop")
    return held, constrain(last_logits, mesh, *LOGITS)


def _written(held, k, v, packed, mesh):
    """A layer's keys and values with those of new tokens."""
    if by_kernel(mesh):
        # Made where a token's stream is, and then sent: not the stream, which is larger.
        k, v = (constrain(x, mesh, *STREAM[1:], "kv_heads") for x in (k, v))
        return slot_attention.write(held, (k, v), packed.to, packed.places, mesh)
    return kv_cache.constrained(kv_cache.write(held, (k, v), packed.to, packed.places), mesh)


def _limits(config: ModelConfig, window: int | None, places: jax.Array) -> dict:
    """What limits the attention of tokens at such places of their slots."""
    begins = None if window is None else places - window + 1
    return {"begins": begins, "softcap": config.attention_softcap}


def _attended(q, held, shared, slots, tiles, mesh, before=None, *, begins, softcap):
    """`read_attention` on TPU; else `tiled_attention`, on a mesh by every device through all rows
    of its heads."""
    if by_kernel(mesh):
        return read_attention(q, held, shared, slots, tiles, before, mesh, begins, softcap)
    if mesh is not None:
        held = kv_cache.pick_layer(held, slots, held[1].shape[2])
        held = jax.tree.map(lambda a: constrain(a, mesh, "kv_heads"), held)
        q, slots = constrain(q, mesh, None, "kv_heads"), jnp.arange(len(slots))
    return tiled_attention(q, held, shared, slots, tiles, before, begins, softcap)


def _before(prefix: Prefix | None) -> jax.Array | np.int32:
    """How many tokens stand before a row's own."""
    return np.int32(0) if prefix is None else prefix.length


def fork(
    cache: KVCache, sources: jax.Array, targets: jax.Array, *, limit: int, mesh: Mesh | None = None
) -> KVCache:
    """Copies the first `limit` positions of slots to other slots; int32[R] each, S drops a row."""
    return KVCache.of_layers(
        [_fork_layer(held, sources, targets, limit=limit, mesh=mesh) for held in cache.layers]
    )


@functools.partial(jax.jit, static_argnames=("limit", "mesh"), donate_argnames=("held",))
def _fork_layer(held, sources, targets, *, limit, mesh):
    copied = kv_cache.put_layer(held, targets, kv_cache.pick_layer(held, sources, limit))
    return kv_cache.constrained(copied, mesh)


def score(
    params: Params,
    cache: KVCache,
    last_logits: jax.Array,
    prefix: Prefix | None,
    slots: jax.Array,
    lengths: jax.Array,
    nodes: jax.Array | None,
    depths: jax.Array | None,
    sees: jax.Array | None,
    after: jax.Array,
    ids: jax.Array,
    *,
    config: ModelConfig,
    dtype: jnp.dtype,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Log-probabilities float32[R, E] of tokens of options, each after its context.

    A row's options form a tree, so that what they have in common is read once, and all are read in
    one pass behind the slot's cache, which is left as it was.

    Args:
      slots, lengths: int32[R], distinct rows and how much of each is context.
      nodes: int32[R, W], the tokens that another token follows, padded at will. This and the next
        two are None where every option is one token.
      depths: int32[R, W], how many tokens of its option stand before a node.
      sees: bool[R, W, W], which of its row's nodes a node attends to; itself, always.
      after: int32[R, E], what each token follows: -1 is the context, else a node.
      ids: int32[R, E], the tokens, padded at will.
    """
    static = {"config": config, "dtype": dtype, "mesh": mesh}
    x = None
    if nodes is not None:
        places = lengths[:, None] + depths
        x, angles = _embed(params["embed"], nodes, places, _before(prefix), **static)
        windows, angles = config.windows, [angles[n] for n in config.rope_of]
        for n, (layer, held) in enumerate(zip(params["layers"], cache.layers, strict=True)):
            shared, own = prefix and prefix.layer(n), static | {"window": windows[n]}
            x = score_layer(layer, held, shared, x, angles[n], slots, lengths, depths, sees, **own)
    return _edges(params, last_logits, x, slots, after, ids, **static)


@functools.partial(jax.jit, static_argnames=_STATIC_OF_LAYER)
def score_layer(
    layer, held, shared, x, angles, slots, lengths, depths, sees,
    *, config, dtype, mesh, window=None,
):  # fmt: skip
    """One layer of `score`: the residual stream [D, R W] after it."""
    tiles = Tiles.behind(lengths, sees.shape[1])
    limits = _limits(config, window, (lengths[:, None] + depths).ravel())
    if window is not None:
        sees = sees & (depths[:, :, None] - depths[:, None] < window)

    def attend(q, k, v):
        before = among(q, k, v, sees, config.attention_softcap)
        return _attended(q, held, shared, slots, tiles, mesh, before, **limits), None

    x, _ = block(config, dtype, layer, x, angles, attend)
    return constrain(x, mesh, *STREAM)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _edges(params, last_logits, x, slots, after, ids, *, config, dtype, mesh):
    scores = last_logits.at[slots].get(mode="clip")[:, None]
    if x is not None:
        nodes = final_logits(config, dtype, params, x)
        scores = jnp.concatenate([scores, nodes.reshape(len(slots), -1, nodes.shape[-1])], 1)
    total = jax.nn.logsumexp(scores, -1)
    row = jnp.arange(len(slots))[:, None]
    return constrain(scores[row, after + 1, ids] - total[row, after + 1], mesh)
