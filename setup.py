"""cai_jax: Constitutional AI in JAX."""

from setuptools import find_packages, setup

setup(
    name="cai_jax",
    version="0.1.0",
    description="Constitutional AI (arXiv 2212.08073) in JAX: from a constitution to an assistant.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["cai_jax", "cai_jax.*"]),
    package_data={"cai_jax.datasets": ["*.jsonl"]},
    install_requires=[
        "jax>=0.10,<0.12",
        "flax>=0.12,<0.13",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11,<0.13",
        "tensorflow-datasets>=4.9.9,<5",
        "array-record>=0.7",
        "sentencepiece>=0.2,<0.3",
        "tokenizers>=0.21,<0.24",
        "ml-collections>=1.0,<2",
        "safetensors>=0.5,<0.9",
        "gguf>=0.17,<0.20",
        "jinja2>=3.1,<4",
        "pyyaml>=6,<7",
        "rich>=13,<16",
        "matplotlib>=3.9,<4",
        "choix>=0.4,<0.5",
        "chex>=0.1.89,<0.2",
        "numpy>=2,<3",
    ],
    extras_require={
        "test": ["pytest>=8,<10", "ruff>=0.14,<0.16", "torch>=2.6,<3", "transformers>=4.50,<6"],
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "bench": ["torch>=2.6,<3", "transformers>=4.50,<6"],
    },
    entry_points={"console_scripts": ["cai-jax=cai_jax.cli:main"]},
)
