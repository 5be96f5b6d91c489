# SPDX-License-Identifier: Apache-2.0
"""Tell a spike of loss or gradient norm from noise, inside the jitted step, without a host sync.

The window holds the last accepted values only: what is not finite or spikes never gets in, so one
spike cannot hide the next. A value spikes when it lies `factor` robust deviations (1.4826 times
the median absolute deviation) above the window's median; gradient norms are compared as logarithms,
because they are spread over orders of magnitude. The window is part of the training state and is
saved with it: a resumed run judges as the unstopped one would.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llm.core import config as configs
from llm.errors import ConfigError

ACTIONS = ("log", "skip", "roll_back")

# Smallest deviation that counts: a share of the median loss; a difference of log norms. Without
# it, a loss that hardly moves would spike at every breath.
_FLOORS = (0.02, 0.1)


class Spikes(NamedTuple):
    """The train.spike section of a config.

    Attributes:
        window: accepted steps that a new one is compared with; 0 looks for no spikes. Nothing is
            judged before the window is full. After window / 2 spikes in a row the new level is
            taken for what it is: the window starts again.
        factor: robust deviations above the median that make a spike.
        action: "log" it; "skip" the update; "roll_back" to the newest checkpoint before it, and
            leave out the data from there on.
        skip: steps' worth of data to leave out at a roll-back (at least up to the spike).
        max: roll-backs before the run ends.
    """

    window: int = 64
    factor: float = 8.0
    action: str = "log"
    skip: int = 200
    max: int = 5


OFF = Spikes(window=0)


class History(NamedTuple):
    """What the judgement remembers.

    Attributes:
        values: float32 [2, window], a ring of accepted losses and log gradient norms.
        seen: int32 [], how many were accepted.
        row: int32 [], spikes in a row.
    """

    values: jax.Array
    seen: jax.Array
    row: jax.Array


def make(section: Any) -> Spikes:
    """Read the config section.

    Raises:
        ConfigError: a key or value is wrong.
    """
    spikes = Spikes(**configs.bind(Spikes, section, "train.spike"))
    configs.choose(spikes.action, dict.fromkeys(ACTIONS), "train.spike.action")
    if spikes.window < 0 or spikes.window in (1, 2, 3) or spikes.factor <= 0 or spikes.skip < 0:
        raise ConfigError(
            f"config.train.spike has window={spikes.window}, factor={spikes.factor}, "
            f"skip={spikes.skip}.",
            "Use a window of 4 or more (0: off), a factor above 0 and a skip of 0 or more.",
        )
    if spikes.action == "roll_back" and not spikes.window:
        raise ConfigError("config.train.spike.action=roll_back needs a window.", "Set window=64.")
    return spikes


def empty(window: int) -> History:
    """Return a history without values."""
    return History(jnp.zeros((2, window)), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def _medians(rows: jax.Array, filled: jax.Array, count: jax.Array) -> jax.Array:
    """Return the median of the filled part of each row: [2, W] -> [2]."""
    ordered = jnp.sort(jnp.where(filled[None], rows, jnp.inf), axis=1)
    return (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2


def look(
    history: History, loss: jax.Array, norm: jax.Array, finite: jax.Array, factor: float
) -> tuple[jax.Array, History]:
    """Judge one step and remember it.

    Args:
        history: of the steps before.
        loss: float32 [].
        norm: float32 [], the gradients' norm before clipping.
        finite: bool [], whether the step's numbers are usable at all.
        factor: see `Spikes`.

    Returns:
        How many robust deviations the step lies above the median if it spikes, else 0 (float32
        []), and the history after it.
    """
    window = history.values.shape[1]
    new = jnp.stack([loss, jnp.log(jnp.maximum(norm, 1e-12))]).astype(jnp.float32)
    finite = finite & jnp.isfinite(new).all()
    count = jnp.minimum(history.seen, window)
    filled = jnp.arange(window) < count
    middle = _medians(history.values, filled, count)
    spread = 1.4826 * _medians(jnp.abs(history.values - middle[:, None]), filled, count)
    least = jnp.stack([_FLOORS[0] * jnp.abs(middle[0]) + 1e-6, jnp.float32(_FLOORS[1])])
    score = jnp.max((new - middle) / jnp.maximum(spread, least))
    spiking = finite & (count == window) & (score > factor)
    accepted = finite & ~spiking
    added = history.values.at[:, history.seen % window].set(new)
    values = jnp.where(accepted, added, history.values)
    row = jnp.where(spiking, history.row + 1, jnp.where(accepted, 0, history.row))
    settled = row >= max(window // 2, 2)  # no spike: the new level
    after = History(
        values,
        jnp.where(settled, 0, history.seen + accepted.astype(jnp.int32)),
        jnp.where(settled, 0, row),
    )
    return jnp.where(spiking, score, 0.0), after


def to_json(history: Any) -> dict[str, Any]:
    """Return a history as JSON-able values, exactly; {} for none."""
    if not history:
        return {}
    host = jax.device_get(history)
    return {k: np.asarray(v).tolist() for k, v in host._asdict().items()}


def from_json(saved: Any, like: Any) -> Any:
    """Return a saved history, or an empty one if there is none or the window's size changed."""
    if not like:
        return like
    values = np.asarray((saved or {}).get("values", ()), np.float32)
    if values.shape != like.values.shape:
        return empty(like.values.shape[1])
    return History(jnp.asarray(values), jnp.int32(saved["seen"]), jnp.int32(saved["row"]))
