"""Scripts in, Transcripts out."""

from cai_jax.decoding.engine import Engine, Stats

__all__ = ["Engine", "Stats"]
