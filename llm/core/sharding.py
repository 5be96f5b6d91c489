# SPDX-License-Identifier: Apache-2.0
"""The one place that knows how arrays are laid over devices.

Model code names *logical* axes ("batch", "embed", "mlp", …). A rule set maps each logical axis to
mesh axes; the mesh maps those to devices. Nothing is replicated silently: a rule that asks for a
mesh axis twice in one array, or for a size that does not divide, raises, and so does a mesh axis
that splits nothing of the model.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from llm.errors import ConfigError

MESH_AXES = ("data", "fsdp", "tensor", "context", "expert", "stage")

LOGICAL_AXES = (
    "batch",
    "rows",
    "microbatch",
    "length",
    "sequence",
    "embed",
    "heads",
    "kv_heads",
    "head_dim",
    "mlp",
    "vocab",
    "expert",
    "layers",
    "stage",
)

Rules = Mapping[str, tuple[str, ...]]

# Parameters: what each logical axis is split over. Activations share the rules but for "embed":
# weights are gathered before use (ZeRO-3), so an activation's model axis stays whole. Devices that
# share a sequence share the weights too.
PARAMETER_RULES: Rules = {
    "embed": ("fsdp", "context"),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "expert": ("expert",),
    "layers": ("stage",),
}
# "sequence" is the length of the residual stream, outside attention and feed-forward layers. The
# batch is split over stages too: what is outside the pipeline is shared out, not done S times.
ACTIVATION_RULES: Rules = {
    "batch": ("data", "fsdp", "expert", "stage"),
    "rows": ("data", "fsdp", "stage"),  # the batch where mesh.expert splits another dimension
    "microbatch": ("data", "fsdp", "expert"),  # the batch where mesh.stage splits another one
    "length": ("context",),
    "sequence": ("context",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "vocab": ("tensor",),
    "expert": ("expert",),
    "stage": ("stage",),
}


LANES = 128  # columns of a TPU's registers: narrower parts of arrays take the room of so many
HOST = "pinned_host"  # the memory of the host that devices read from directly


class Choices(NamedTuple):
    """The `sharding` section of a config: what the sizes of the mesh leave open.

    Attributes:
        zero1: split optimizer state and averages over mesh.data as well (ZeRO, stage 1).
        sequence: split the residual stream's positions over mesh.tensor as well (Megatron's
            sequence parallelism, arXiv:2205.05198).
        microbatches: into how many parts the pipeline over mesh.stage splits a batch; 0 for the
            most that divide, up to four per stage.
        repeats: how often a microbatch goes round the stages (circular pipeline): the bubble
            shrinks as much, for one exchange of the weights between stages per step.
        offload: keep optimizer state in the host's memory between updates.
    """

    zero1: bool = False
    sequence: bool = False
    microbatches: int = 0
    repeats: int = 1
    offload: bool = False


class Layout(NamedTuple):
    """A mesh with the rules that map logical axes onto it."""

    mesh: Mesh
    parameters: Rules = PARAMETER_RULES
    activations: Rules = ACTIVATION_RULES
    optimizer: Rules = PARAMETER_RULES
    choices: Choices = Choices()
    mapped: tuple[str, ...] = ()  # mesh axes that a function is being mapped over


def make_layout(mesh: Mesh, choices: Mapping[str, Any] | None = None) -> Layout:
    """Return the rules that a config's `sharding` section asks for, on a mesh.

    Raises:
        ConfigError: a choice needs a mesh axis that has size 1, or makes no sense.
    """
    made = Choices(**dict(choices or {}))
    for word, axis, asked in (
        ("zero1", "data", made.zero1),
        ("sequence", "tensor", made.sequence),
        ("microbatches", "stage", made.microbatches > 1),
        ("repeats", "stage", made.repeats > 1),
    ):
        if asked and mesh.shape[axis] == 1:
            raise ConfigError(
                f"sharding.{word} has nothing to split: mesh.{axis} is 1.",
                f"Give mesh.{axis} more devices, or leave sharding.{word} alone.",
            )
    if made.microbatches < 0 or made.repeats < 1:
        raise ConfigError(
            f"sharding has microbatches={made.microbatches}, repeats={made.repeats}.",
            "Use microbatches from 0 and repeats from 1.",
        )
    if made.offload and HOST not in _memories(mesh):
        raise ConfigError(
            f"sharding.offload: these devices reach no memory of the host ({HOST}).",
            "Set sharding.offload=false; sharding.zero1 or mesh.fsdp split optimizer state.",
        )
    optimizer, activations = dict(PARAMETER_RULES), dict(ACTIVATION_RULES)
    if made.zero1:
        optimizer["embed"] = (*PARAMETER_RULES["embed"], "data")
    if made.sequence:
        activations["sequence"] = ("context", "tensor")
    return Layout(mesh, PARAMETER_RULES, activations, optimizer, made)


_LAYOUT: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)
_NOTED: contextvars.ContextVar[list | None] = contextvars.ContextVar("noted", default=None)


def _memories(mesh: Any) -> set[str]:
    """Return the kinds of memory that the devices of a mesh reach."""
    if not isinstance(mesh, Mesh):
        return {HOST}  # no devices yet: a plan
    device = mesh.devices.flat[0]
    try:
        return {memory.kind for memory in device.addressable_memories()}
    except jax.errors.JaxRuntimeError:  # described, not there: TPUs have it
        return {HOST} if device.platform == "tpu" else set()


def on_host(shapes: Any, shardings: Any) -> Any:
    """Return shardings that keep arrays (not counters) in the host's memory."""
    return jax.tree.map(
        lambda x, place: place.with_memory_kind(HOST) if x.ndim else place, shapes, shardings
    )


def mesh_shape(sizes: Mapping[str, int], n_devices: int) -> dict[str, int]:
    """Complete the sizes of the mesh axes; one of them may be -1, "whatever is left".

    Raises:
        ConfigError: unknown axis, two -1, or a product that is not the number of devices.
    """
    unknown = sorted(set(sizes) - set(MESH_AXES))
    if unknown:
        raise ConfigError(f"Unknown mesh axis {unknown[0]!r}.", f"Axes: {', '.join(MESH_AXES)}.")
    shape = {axis: int(sizes.get(axis, 1)) for axis in MESH_AXES}
    free = [axis for axis, size in shape.items() if size == -1]
    bad = [axis for axis, size in shape.items() if size < 1 and size != -1]
    if bad or len(free) > 1:
        wrong = bad[0] if bad else ", ".join(free)
        raise ConfigError(
            f"mesh.{wrong} is not usable: sizes are positive and at most one is -1.",
            "Set every axis but one to its size.",
        )
    fixed = math.prod(size for size in shape.values() if size > 0)
    if free and n_devices % fixed == 0:
        shape[free[0]] = n_devices // fixed
    elif free or fixed != n_devices:
        described = ", ".join(f"{axis}={size}" for axis, size in shape.items() if size != 1)
        raise ConfigError(
            f"A mesh with {described} does not fit {n_devices} devices.",
            f"Nearest that would: {_nearest(shape, free, n_devices)}.",
        )
    return shape


def _nearest(shape: Mapping[str, int], free: Sequence[str], n_devices: int) -> str:
    """Suggest sizes close to the wish: keep the inner axes, give the rest to an outer one."""
    remaining, kept = n_devices, {}
    for axis in reversed(MESH_AXES):
        wish = shape[axis]
        if axis in (*free, "data") or wish <= 1:
            continue
        kept[axis] = max(d for d in range(1, wish + 1) if remaining % d == 0)
        remaining //= kept[axis]
    absorber = free[0] if free else "data"
    kept[absorber] = kept.get(absorber, 1) * remaining
    return ", ".join(f"mesh.{axis}={size}" for axis, size in kept.items())


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """Build the mesh over all six axes with Auto axis types.

    Args:
        sizes: mesh axis -> size; missing axes are 1, one may be -1. `dcn` is the number of
            slices (multi-slice pods; processes, where devices know of no slices): the data axis is
            laid over them, slowest first, so that only it crosses the slow network.
        devices: the devices to use; all by default.

    Raises:
        ConfigError: the sizes do not fit the devices or their slices.
    """
    wanted = dict(sizes)
    slices = int(wanted.pop("dcn", 1))
    chosen = list(jax.devices() if devices is None else devices)
    shape = mesh_shape(wanted, len(chosen))
    auto = (AxisType.Auto,) * len(MESH_AXES)
    if slices == 1:
        return _one_slice(tuple(shape.values()), auto, chosen)
    from jax.experimental import mesh_utils

    if shape["data"] % slices:
        raise ConfigError(
            f"mesh.dcn={slices} slices do not divide mesh.data={shape['data']}.",
            "Give mesh.data a multiple of the number of slices.",
        )
    found = {getattr(device, "slice_index", 0) for device in chosen}
    by_process = len(found) == 1
    if by_process:
        found = {device.process_index for device in chosen}
    if len(found) != slices:
        raise ConfigError(
            f"mesh.dcn={slices}, but the devices are of {len(found)} "
            f"{'processes' if by_process else 'slices'}.",
            f"Set mesh.dcn={len(found)}.",
        )
    inner = tuple(n // slices if a == "data" else n for a, n in shape.items())
    outer = tuple(slices if a == "data" else 1 for a in shape)
    array = mesh_utils.create_hybrid_device_mesh(
        inner, outer, devices=chosen, process_is_granule=by_process
    )
    return Mesh(array, MESH_AXES, axis_types=auto)


def _one_slice(shape: tuple[int, ...], types: tuple[AxisType, ...], devices: list[Any]) -> Mesh:
    """Lay axes along those of a slice, or, where their sizes do not match, across parts of them."""
    try:
        return jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices)
    except NotImplementedError:
        from jax.experimental import mesh_utils

        array = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return Mesh(array, MESH_AXES, axis_types=types)


@contextlib.contextmanager
def use_layout(where: Mesh | Layout) -> Iterator[Layout]:
    """Make a layout, or a mesh with the plain rules, the one that `shard` and `resolve` follow."""
    layout = where if isinstance(where, Layout) else Layout(where)
    with within(layout), jax.set_mesh(layout.mesh):
        yield layout


@contextlib.contextmanager
def within(layout: Layout | None) -> Iterator[None]:
    """Follow other rules on the mesh in force; None lets the compiler place activations, as for
    batches that the mesh does not divide."""
    token = _LAYOUT.set(layout)
    try:
        yield
    finally:
        _LAYOUT.reset(token)


def current_layout() -> Layout | None:
    """Return the layout in force, or None outside `use_layout`."""
    return _LAYOUT.get()


def resolve(
    axes: Sequence[str | None], rules: Rules, mesh: Mesh, shape: Sequence[int], name: str = "array"
) -> PartitionSpec:
    """Map an array's logical axes to a partition spec, refusing conflicts.

    Args:
        axes: one logical axis (or None) per dimension.
        rules: logical axis -> mesh axes.
        mesh: the mesh; its axes of size 1 are left out of the spec.
        shape: the array's sizes, checked to be divisible.
        name: what to call the array in an error.

    Raises:
        ConfigError: an unknown logical axis, one mesh axis used twice, or an indivisible size.
    """
    taken: dict[str, str] = {}
    entries: list[Any] = []
    for axis, size in zip(axes, shape, strict=True):
        if axis is not None and axis not in LOGICAL_AXES:
            raise ConfigError(f"{name}: unknown logical axis {axis!r}.", f"Known: {LOGICAL_AXES}.")
        split = [m for m in rules.get(axis or "", ()) if mesh.shape.get(m, 1) > 1]
        for m in split:
            if m in taken:
                raise ConfigError(
                    f"{name}: mesh axis {m!r} would split both {taken[m]!r} and {axis!r}.",
                    "Change the rules so that an array uses each mesh axis once.",
                )
            taken[m] = str(axis)
        parts = math.prod(mesh.shape[m] for m in split)
        if size % parts:
            fits = [d for d in range(parts, 0, -1) if size % d == 0]
            raise ConfigError(
                f"{name}: axis {axis!r} of size {size} does not divide over "
                f"{' x '.join(f'{m}={mesh.shape[m]}' for m in split)}.",
                f"The nearest size that divides it is {fits[0]}.",
            )
        entries.append(None if not split else split[0] if len(split) == 1 else tuple(split))
    return PartitionSpec(*entries)


def shard(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation's layout by its logical axes; nothing outside a layout."""
    layout = _LAYOUT.get()
    if layout is None or layout.mesh.size == 1:
        return x
    spec = resolve(axes, layout.activations, layout.mesh, x.shape, "activation")
    place = NamedSharding(layout.mesh, spec)
    noted = _NOTED.get()
    if noted is not None:
        noted.append(("/".join(str(axis) for axis in axes), x, place))
    # Where an axis is mapped over, the mesh is that of the others: the one in force there.
    return jax.lax.with_sharding_constraint(x, spec if layout.mapped else place)


@contextlib.contextmanager
def noting() -> Iterator[list[tuple[str, jax.Array, NamedSharding]]]:
    """Collect (axes, value, sharding) of every constraint that is traced meanwhile."""
    found: list[tuple[str, jax.Array, NamedSharding]] = []
    token = _NOTED.set(found)
    try:
        yield found
    finally:
        _NOTED.reset(token)


def split_over(axis: str) -> tuple[str, ...]:
    """Return the mesh axes, of more than one device, that split an activation's logical axis."""
    layout = _LAYOUT.get()
    if layout is None:
        return ()
    return tuple(m for m in layout.activations.get(axis, ()) if layout.mesh.shape[m] > 1)


def parts(axis: str) -> int:
    """Return into how many parts an activation's logical axis is split."""
    layout = _LAYOUT.get()
    return math.prod(layout.mesh.shape[m] for m in split_over(axis)) if layout else 1


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh, ndim: int, rules: Rules = ACTIVATION_RULES) -> NamedSharding:
    """Return the sharding of an input [B, T, …]: batch over the batch axes, T over context."""
    axes = ("batch", "length", *(None,) * max(0, ndim - 2))[:ndim]
    entries = []
    for axis in axes:
        split = tuple(m for m in rules.get(axis or "", ()) if mesh.shape.get(m, 1) > 1)
        entries.append(split or None)
    return NamedSharding(mesh, PartitionSpec(*entries))


def batch_parts(mesh: Mesh, rules: Rules = ACTIVATION_RULES) -> int:
    """Return into how many parts the batch is split."""
    return math.prod(mesh.shape.get(m, 1) for m in rules["batch"])


def smallest_input(layout: Layout) -> tuple[int, int]:
    """Return the smallest batch and length (of at least 8) that divide over the mesh."""
    longest = math.prod(layout.mesh.shape[m] for m in layout.activations["sequence"])
    return batch_parts(layout.mesh, layout.activations), 8 * longest


def logical_axes(boxed: Any) -> Any:
    """Return the tree of logical-axis tuples of a tree of Linen partitioned (boxed) parameters."""
    import flax.linen as nn

    def names(leaf: Any) -> tuple[str | None, ...]:
        if isinstance(leaf, nn.LogicallyPartitioned):
            return tuple(leaf.names)
        return (None,) * len(leaf.shape)

    return jax.tree.map(names, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def unbox(boxed: Any) -> Any:
    """Strip Linen's partitioning boxes without adding constraints: plain nested dicts remain."""
    import flax.linen as nn

    return jax.tree.map(
        lambda leaf: leaf.value if isinstance(leaf, nn.LogicallyPartitioned) else leaf,
        boxed,
        is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned),
    )


def parameter_shardings(boxed: Any, layout: Layout, rules: Rules | None = None) -> Any:
    """Return a tree of shardings for boxed (shape) parameters under a layout.

    Args:
        boxed: parameters with their logical axes.
        layout: mesh and rules.
        rules: others than those of parameters, such as those of optimizer state.

    Raises:
        ConfigError: a size does not divide, or an axis of the mesh splits no parameter.
    """
    from llm.core.trees import flatten, unflatten

    shapes = flatten(unbox(boxed))
    axes = flatten(logical_axes(boxed), is_leaf=lambda x: isinstance(x, tuple))
    specs = {}
    for name, leaf in shapes.items():
        chosen = _wide_columns(axes[name], layout, rules or layout.parameters, leaf.shape)
        specs[name] = resolve(axes[name], chosen, layout.mesh, leaf.shape, name)
    used = {m for spec in specs.values() for m in jax.tree.leaves(tuple(spec))}
    for axis in ("fsdp", "tensor", "expert", "stage"):
        if layout.mesh.shape[axis] > 1 and axis not in used:
            raise ConfigError(
                f"mesh.{axis}={layout.mesh.shape[axis]} splits no parameter of this model.",
                f"Set mesh.{axis}=1 and give its devices to mesh.data.",
            )
    return unflatten({name: NamedSharding(layout.mesh, spec) for name, spec in specs.items()})


def _wide_columns(
    axes: Sequence[str | None], layout: Layout, rules: Rules, shape: Sequence[int]
) -> Rules:
    """Split a weight [.., mlp, embed] by its rows if parts of its columns would be too narrow."""
    if tuple(axes[-2:]) != ("mlp", "embed"):
        return rules
    sizes = layout.mesh.shape
    columns = math.prod(sizes[m] for m in layout.parameters["embed"])
    moved = (*rules["mlp"], *rules["embed"])
    if shape[-1] // columns >= LANES or shape[-2] % math.prod(sizes[m] for m in moved):
        return rules
    return {**rules, "mlp": moved, "embed": ()}


def like_parameters(tree: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shard any tree that embeds parameter-shaped subtrees (optimizer state) as the parameters.

    A leaf whose path ends with a parameter's path and whose rank equals it takes its sharding;
    everything else (counters, factored moments) is replicated.
    """
    from llm.core.trees import flatten, path_name

    known = flatten(shardings, is_leaf=lambda x: isinstance(x, NamedSharding))

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = path_name(path)
        for parameter, sharding in known.items():
            matches = name == parameter or name.endswith("/" + parameter)
            if matches and len(sharding.spec) == len(leaf.shape):
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(place, tree)
