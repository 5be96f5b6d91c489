# SPDX-License-Identifier: Apache-2.0
"""Parameter trees with adapters: begin them on a base, leave them out, merge them into it."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from llm.core import trees
from llm.core.sharding import unbox
from llm.errors import ConfigError
from llm.models import lora, quant
from llm.models.adapters import ADDED, HEADS, Adapter
from llm.models.config import TransformerConfig, with_adapter

# What a model may have that the parameters it starts from have not, and the reverse.
FRESH = rf"{ADDED}|{HEADS}|^pooler/"
REPLACED = r"^(lm_head|classifier|value_head)/"


def begin(
    model: Any, params: Any, tokens: jax.Array, key: jax.Array, shardings: Any = None
) -> dict[str, Any]:
    """Fit the parameters of a base to a model: store them as it does, add what it adds.

    New low-rank updates change nothing (B = 0, DoRA's magnitudes are those of the base).

    Args:
        model: a Transformer, whose config may have an adapter or a classification head.
        params: parameters of the base, with or without these adapters; a head that the model does
            not have is left out, other surplus stays for the caller to refuse.
        tokens: the smallest input that initialises the model.
        key: for fresh parameters.
        shardings: tree of where to put the result, or None.
    """
    expected = jax.eval_shape(lambda: model.init(key, tokens))["params"]
    wanted = trees.flatten(unbox(expected))
    named: dict[str, Any] = {}
    for name, leaf in trees.flatten(params, is_leaf=quant.is_quantized).items():
        if name in wanted or not re.search(REPLACED, name):
            named |= _fit(name, leaf, wanted, model.config)
    missing = [name for name in wanted if name not in named]
    if not missing or not all(re.search(FRESH, name) for name in missing):
        return trees.unflatten(named)

    def complete(known: Any) -> Any:
        both = model.config.architecture == "encoder_decoder"
        _, made = model.apply(
            {"params": known},
            tokens,
            **({"encoder_tokens": tokens} if both else {}),
            mutable=["params"],
            rngs={"params": key},
        )
        fresh = trees.flatten(unbox(made["params"]))
        return {name: fresh[name] for name in missing}

    known = {name: leaf for name, leaf in named.items() if name in wanted}
    places = None
    if shardings is not None:
        at = trees.flatten(shardings, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding))
        known = {name: jax.device_put(leaf, at[name]) for name, leaf in known.items()}
        places = {name: at[name] for name in missing}
    named |= known
    known = trees.unflatten(known)
    return trees.unflatten(named | jax.jit(complete, out_shardings=places)(known))


def _fit(name: str, leaf: Any, wanted: dict[str, Any], c: TransformerConfig) -> dict[str, Any]:
    """Return a leaf as the model stores it: a plain array, or integers with scales."""
    as_integers = f"{name}/scale" in wanted
    if not as_integers:
        return {name: quant.materialize(leaf)}
    if not quant.is_quantized(leaf):
        leaf = _store(jnp.asarray(leaf), c.adapter.base, c.adapter.block)
    return {f"{name}/{part}": x for part, x in leaf.items()}


_store = jax.jit(quant.store, static_argnums=(1, 2))


def without(config: TransformerConfig, params: Any) -> tuple[TransformerConfig, Any]:
    """Return the base alone: its config, and its parameters without those of the adapter."""
    base = with_adapter(config, Adapter(base=config.adapter.base, block=config.adapter.block))
    return base, trees.split(params, ADDED)[1]


def merge(config: TransformerConfig, params: Any) -> tuple[TransformerConfig, Any]:
    """Put low-rank updates into the weights; the result is a plain model.

    A base kept as integers becomes floating-point weights.

    Raises:
        ConfigError: virtual tokens are no change of weights.
    """
    adapter = config.adapter
    if not adapter.mergeable:
        raise ConfigError(
            f"A {adapter.name} cannot be merged into weights: it adds virtual tokens.",
            "Save the adapter alone (format='peft' or 'adapter') and load it with its base.",
        )
    named = trees.flatten(quant.dequantize(params, config.param_dtype))
    for name in [name for name in named if re.search(r"lora_a$", name)]:
        stem = name.removesuffix("lora_a")
        a, b = named.pop(name), named.pop(f"{stem}lora_b")
        magnitude = named.pop(f"{stem}lora_m", None)
        kernel = f"{stem}kernel"
        named[kernel] = _merge(
            named[kernel], a, b, magnitude, scale=adapter.scale, stacked=stacked_axes(name)
        )
    return with_adapter(config, Adapter()), trees.unflatten(named)


def stacked_axes(name: str) -> int:
    """Return how many leading axes of a leaf only stack layers and experts."""
    return ("/layers/" in name) + bool(re.search(r"/moe/(gate|up|down)_", name))


@functools.partial(jax.jit, static_argnames=("scale", "stacked"))
def _merge(
    kernel: jax.Array, a: jax.Array, b: jax.Array, magnitude: Any, scale: float, stacked: int
) -> jax.Array:
    def one(w: jax.Array, a: jax.Array, b: jax.Array, m: Any) -> jax.Array:
        return lora.merged(w, a, b, scale, m)

    for _ in range(stacked):
        one = jax.vmap(one)
    return one(kernel, a, b, magnitude)
