"""Log-probabilities of chosen tokens, entropy, and estimators of the KL divergence. In nats."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp

from cai_jax.mesh import constrain, traced_mesh_of


def token_logprobs(logits: jax.Array, tokens: jax.Array, temperature: float = 1.0) -> jax.Array:
    """Log-probability of each token given those before it.

    out[b, t] = log softmax(logits[b, t] / temperature)[tokens[b, t + 1]], computed as a gathered
    logit less a logsumexp, so no array of log-probabilities of size V is made.

    Args:
      logits: float32[B, T, V].
      tokens: int32[B, T].
      temperature: of the distribution, above 0; a response sampled at some temperature is scored
        at the same one.

    Returns:
      float32[B, T - 1]; element t belongs to token t + 1, hence to `mask[:, 1:]`.
    """
    chex.assert_rank([logits, tokens], [3, 2])
    chex.assert_equal_shape_prefix([logits, tokens], 2)
    return _gather(logits[:, :-1].astype(jnp.float32) / temperature, tokens[:, 1:])


def entropy(logits: jax.Array) -> jax.Array:
    """Entropy of softmax(logits): float32[..., V] -> float32[...].

    H = logsumexp(z) - sum_v p_v z_v.
    """
    return _entropy(logits.astype(jnp.float32))


def chunked_token_logprobs(
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    temperature: float,
    chunk: int,
    softcap: float | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and entropies from the last hidden states, never all logits at once.

    The unembedding, the logsumexp and their gradients run over `chunk` positions at a time (a scan
    whose body is rematerialised), so memory holds float32[B, chunk, V] and not float32[B, T, V].
    On the mesh of `kernel` a chunk has `chunk` positions of every device, and the devices that
    share the params each take a part of V: states are sent round, not the unembedding.

    Args:
      hidden: float[B, T, D], after the final norm.
      kernel: float[D, V], the unembedding (the embedding transposed where they are tied).
      targets: int32[B, T]; targets[b, t] is predicted from hidden[b, t], the caller has shifted.
      temperature: of the distribution, above 0.
      chunk: positions at a time; T need not be a multiple.
      softcap: c of c tanh(logits / c), which is divided by the temperature; None for none.

    Returns:
      logprobs float32[B, T] of the targets and entropy float32[B, T] of the distributions.
    """
    chex.assert_rank([hidden, kernel, targets], [3, 2, 2])
    chex.assert_equal_shape_prefix([hidden, targets], 2)
    batch, length, _ = hidden.shape
    mesh = traced_mesh_of(kernel)
    kernel = constrain(kernel, mesh, None, "unembedded")
    pieces = mesh.shape["sequence"] if mesh else 1
    chunk = min(chunk, -(-length // pieces))
    padding = -length % (chunk * pieces)

    def chunks(x):
        """[chunks, B x pieces, chunk, ...]: a device's piece of a row is a row of its own."""
        x = jnp.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))
        x = x.reshape(batch * pieces, -1, chunk, *x.shape[2:])
        return constrain(x.swapaxes(0, 1), mesh, None, "pieces")

    @functools.partial(jax.checkpoint, prevent_cse=False)  # inside a scan CSE cannot undo it
    def body(carry, xs):
        states, ids = (constrain(x, mesh, "replicas") for x in xs)
        head = kernel.astype(states.dtype)  # here, so that chunks' gradients add up in its own
        if mesh is None:  # one matrix: XLA's gradient for CPU copies logits of two leading axes
            states = states.reshape(-1, states.shape[-1])
        logits = jnp.einsum("...d,dv->...v", states, head, preferred_element_type=jnp.float32)
        logits = softcapped(logits.reshape(*ids.shape, -1), softcap)
        logits = constrain(logits / temperature, mesh, "replicas", None, "unembedded")
        return carry, (_gather(logits, ids), _entropy(logits))

    _, (logprobs, entropies) = jax.lax.scan(body, None, (chunks(hidden), chunks(targets)))
    logprobs, entropies = (
        x.swapaxes(0, 1).reshape(batch, -1)[:, :length] for x in (logprobs, entropies)
    )
    return logprobs, entropies


def softcapped(x: jax.Array, cap: float | None) -> jax.Array:
    """cap tanh(x / cap), elementwise; x where there is no cap."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def kl_k1(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """log p/q at tokens sampled from p: unbiased, high variance, may be negative.

    Reference for k1, k2, k3: Schulman, "Approximating KL divergence" (2020). Elementwise; the
    caller masks and sums.
    """
    chex.assert_equal_shape([logprobs, ref_logprobs])
    return logprobs - ref_logprobs


def kl_k2(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """(log p/q)^2 / 2 at tokens sampled from p: biased, low variance, never negative."""
    return 0.5 * jnp.square(kl_k1(logprobs, ref_logprobs))


def kl_k3(logprobs: jax.Array, ref_logprobs: jax.Array) -> jax.Array:
    """q/p - 1 - log q/p at tokens sampled from p: unbiased, low variance, never negative."""
    log_ratio = -kl_k1(logprobs, ref_logprobs)
    return jnp.expm1(log_ratio) - log_ratio


# By their names in configs.
KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def _gather(logits: jax.Array, ids: jax.Array) -> jax.Array:
    chosen = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def _entropy(logits: jax.Array) -> jax.Array:
    # A token of probability 0 (logit -inf) adds 0, not 0 * -inf.
    probs = jax.nn.softmax(logits, axis=-1)
    terms = probs * jnp.where(probs > 0, logits, 0.0)
    return jax.nn.logsumexp(logits, axis=-1) - terms.sum(-1)
