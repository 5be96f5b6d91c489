# SPDX-License-Identifier: Apache-2.0
"""What the backward pass keeps of a layer, and what it computes again."""

from collections.abc import Callable
from typing import Any

import jax

from llm.models.config import TransformerConfig

# config.remat -> what the backward pass keeps of a layer besides its input (None = nothing):
#   full     nothing: everything is computed again
#   dots     what dense layers put out
#   save     what config.remat_names names
#   offload  nothing, and the input is kept in the host's memory
# "none" keeps everything.
_POLICIES = jax.checkpoint_policies
REMATS: dict[str, Callable[[TransformerConfig], Any]] = {
    "full": lambda c: None,
    "dots": lambda c: _POLICIES.dots_with_no_batch_dims_saveable,
    "save": lambda c: _POLICIES.save_only_these_names(*c.remat_names),
    "offload": lambda c: _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["residual"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def kept(config: TransformerConfig) -> Any:
    """Return the policy of `jax.checkpoint` that config.remat names; None keeps nothing."""
    return REMATS[config.remat](config)
