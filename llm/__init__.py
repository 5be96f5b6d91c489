# SPDX-License-Identifier: Apache-2.0
"""jax-llm: the whole life of a language model in JAX and Flax.

A bare `import llm` loads nothing heavy; `llm.load` brings in JAX when it is called.
"""

from typing import Any

__version__ = "0.1.0"


def load(source: str, **options: Any) -> Any:
    """Open a model for use; see `llm.generate.language_model.load`."""
    from llm.generate import language_model

    return language_model.load(source, **options)
