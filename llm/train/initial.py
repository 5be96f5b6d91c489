# SPDX-License-Identifier: Apache-2.0
"""Parameters to start from: fresh, from another run or model folder, or from this run's past."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from llm.core import sharding, trees
from llm.errors import ConfigError
from llm.models import adapters, tuning
from llm.train.objective import Objective
from llm.train.optim import Optimizer
from llm.train.step import Frozen, State, init_state


class Skeleton(NamedTuple):
    """Shapes and placements of everything training holds; no array exists yet.

    Attributes:
        boxed: parameter shapes with their logical axes.
        shapes: the same as plain nested dicts.
        axes: parameter name -> logical axes.
        shardings: tree like shapes.
        trainable: regular expression of trained parameters, never "".
    """

    boxed: Any
    shapes: Any
    axes: dict[str, tuple[str | None, ...]]
    shardings: Any
    trainable: str

    def split(self, tree: Any) -> tuple[Any, Any]:
        """Split a tree like the parameters into the trained leaves and the others."""
        return trees.split(tree, self.trainable)


def skeleton(model: Any, layout: sharding.Layout, trainable: str = "") -> Skeleton:
    """Work out shapes and shardings of a model's parameters without making them.

    Args:
        model: a Transformer.
        layout: mesh and rules.
        trainable: regular expression; "" is what the model's adapters add, or everything.

    Raises:
        ConfigError: the mesh does not divide a parameter, the pattern trains nothing, or it trains
            weights that are kept as integers.
    """
    trainable = adapters.trainable(model.config.adapter, trainable)
    # All inside eval_shape: planning must not touch a device, nor run on a described pod.
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), example_tokens(layout)))["params"]
    shapes = sharding.unbox(boxed)
    axes = trees.flatten(sharding.logical_axes(boxed), is_leaf=lambda x: isinstance(x, tuple))
    made = Skeleton(boxed, shapes, axes, sharding.parameter_shardings(boxed, layout), trainable)
    if not made.split(shapes)[0]:
        known = ", ".join(list(axes)[:4])
        raise ConfigError(
            f"config.train.trainable={trainable!r} matches no parameter.",
            f"Names look like {known}.",
        )
    for name, leaf in trees.flatten(made.split(shapes)[0]).items():
        if not jnp.issubdtype(leaf.dtype, jnp.floating) or name.endswith("kernel/scale"):
            raise ConfigError(
                f"config.train.trainable={trainable!r} matches {name}, which holds integers.",
                "Set model.adapter.base='full', or train the adapters only (trainable='').",
            )
    return made


def example_tokens(layout: sharding.Layout) -> jax.Array:
    """Return the smallest input that initialises a model and divides over the mesh."""
    batch, length = sharding.smallest_input(layout)
    return jnp.zeros((batch, length), jnp.int32)


def fresh_parameters(model: Any, bones: Skeleton, layout: sharding.Layout, seed: int) -> Any:
    """Draw parameters, each device only its own part."""
    tokens = example_tokens(layout)

    def draw(key: jax.Array) -> Any:
        return sharding.unbox(model.init(key, tokens)["params"])

    # It runs once: on a CPU optimising the program takes longer than running it as it is.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    made = jax.jit(draw, out_shardings=bones.shardings, compiler_options=options)
    return made(jax.random.key(seed))


def check_like(params: Any, bones: Skeleton, source: str) -> None:
    """Compare loaded parameters with the model's.

    Raises:
        ConfigError: a parameter is missing, unexpected or of another shape.
    """
    have = {k: tuple(v.shape) for k, v in trees.flatten(params).items()}
    want = {k: tuple(v.shape) for k, v in trees.flatten(bones.shapes).items()}
    for name in [*want, *have]:
        if have.get(name) != want.get(name):
            raise ConfigError(
                f"{source} does not fit config.model: {name} is {have.get(name, 'absent')} there "
                f"and {want.get(name, 'absent')} here.",
                "Take config.model from the run that you start from (model.name = 'inherit').",
            )


def place_parameters(params: Any, bones: Skeleton, source: str) -> Any:
    """Cast loaded parameters to the model's dtypes and lay them over the mesh."""
    check_like(params, bones, source)
    cast = jax.tree.map(lambda p, s: jnp.asarray(p, s.dtype), params, bones.shapes)
    return jax.device_put(cast, bones.shardings)


def start_parameters(
    params: Any, model: Any, bones: Skeleton, layout: sharding.Layout, seed: int, source: str
) -> Any:
    """Begin with loaded parameters: add fresh adapters or a head, and lay all over the mesh."""
    full = tuning.begin(
        model, params, example_tokens(layout), jax.random.key(seed), bones.shardings
    )
    return place_parameters(full, bones, source)


class Placement(NamedTuple):
    """Shapes and shardings of the training state, of what is frozen, and of an update."""

    state_shapes: State
    state: State
    frozen: Frozen
    update: Any


def placement(
    objective: Objective,
    optimizer: Optimizer,
    bones: Skeleton,
    layout: sharding.Layout,
    ema: bool,
) -> Placement:
    """Work out where the state, averages and references live: as the parameters do.

    Under sharding.zero1 optimizer state, averages and updates are split over mesh.data as well.
    """
    trained, _ = bones.split(bones.shapes)
    shapes = jax.eval_shape(lambda p: init_state(p, optimizer, ema), trained)
    finer = sharding.parameter_shardings(bones.boxed, layout, layout.optimizer)
    state = sharding.like_parameters(shapes, finer, layout.mesh)
    state = state._replace(params=bones.split(bones.shardings)[0])
    if layout.choices.offload:
        kept = sharding.on_host(shapes.opt_state, state.opt_state)
        state = state._replace(opt_state=kept)
    reference = jax.eval_shape(objective.init, trained)
    frozen = Frozen(
        bones.split(bones.shardings)[1],
        sharding.like_parameters(reference, bones.shardings, layout.mesh),
    )
    return Placement(shapes, state, frozen, bones.split(finer)[0])


def begin(
    params: Any, objective: Objective, optimizer: Optimizer, bones: Skeleton, where: Placement
) -> tuple[State, Frozen]:
    """Make the training state and the frozen part from full parameters."""
    ema = bool(jax.tree.leaves(where.state_shapes.ema))
    trained, rest = bones.split(params)
    if objective.given is not None:
        reference = jax.device_put(objective.given, where.frozen.objective)
    else:
        reference = jax.jit(objective.init, out_shardings=where.frozen.objective)(trained)
    # Copy: the step donates its state, and `params` may be referred to elsewhere.
    make = jax.jit(
        lambda p: init_state(jax.tree.map(jnp.copy, p), optimizer, ema),
        out_shardings=where.state,
    )
    return make(trained), Frozen(rest, reference)
