# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: text to integers and back, and chats to training examples. Never imports JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm.tokenizers.base import Tokenizer


def load(source: str) -> "Tokenizer":
    """Open a tokenizer: see `llm.tokenizers.loading.load`."""
    from llm.tokenizers import loading

    return loading.load(source)
