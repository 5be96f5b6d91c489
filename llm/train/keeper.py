# SPDX-License-Identifier: Apache-2.0
"""Begin or resume training state and save it: a run's tie to its checkpoints."""

from collections.abc import Mapping
from typing import Any

from llm import files
from llm.core import checkpoint, sharding, trees
from llm.core import config as configs
from llm.errors import DataError
from llm.train import initial, optim
from llm.train.settings import Inputs, Settings, keys
from llm.train.step import Frozen, State


class Keeper:
    """Begin or resume training state and save it: the run's tie to its checkpoints."""

    def __init__(
        self,
        config: Any,
        workdir: str,
        inputs: Inputs,
        settings: Settings,
        bones: initial.Skeleton,
        where: initial.Placement,
    ):
        options = keys(config.checkpoint)
        self.every = options.pop("every", 0)
        self.inputs, self.settings, self.bones, self.where = inputs, settings, bones, where
        self.directory = str(files.path(workdir) / "checkpoints")
        self.checkpointer = checkpoint.Checkpointer(
            self.directory,
            **configs.bind(checkpoint.Checkpointer, options, "checkpoint", given=("directory",)),
        )
        self._rest: Any = {}
        self._saved = -1

    def begin(
        self, optimizer: optim.Optimizer, layout: sharding.Layout, seed: int
    ) -> tuple[State, Frozen]:
        """Return state and frozen part: resumed, warm-started or fresh."""
        if self.inputs.start is not None:
            params = initial.place_parameters(self.inputs.start, self.bones, self.inputs.start_name)
        else:
            params = initial.fresh_parameters(self.inputs.model, self.bones, layout, seed)
        state, frozen = initial.begin(
            params, self.inputs.objective, optimizer, self.bones, self.where
        )
        self._rest = frozen.params
        if not checkpoint.has_checkpoints(self.directory):
            return state, frozen  # damaged checkpoints alone must not restart the run
        return self._resume(), frozen

    def _tree(self, state: State) -> dict[str, Any]:
        full = trees.merge(state.params, self._rest) if self._rest else state.params
        return {
            "params": full,
            "opt_state": state.opt_state,
            "ema": state.ema,
            "counters": {"step": state.step, "skipped": state.skipped},
        }

    def _resume(self) -> State:
        """Restore the newest verified state onto this mesh.

        Raises:
            DataError: the data or the tokenizer are not those the run was trained on.
        """
        shapes, places = self.where.state_shapes, self.where.state
        target = {
            "params": self.bones.shapes,
            "opt_state": shapes.opt_state,
            "ema": shapes.ema,
            "counters": {"step": shapes.step, "skipped": shapes.skipped},
        }
        shardings = {
            "params": self.bones.shardings,
            "opt_state": places.opt_state,
            "ema": places.ema,
            "counters": {"step": places.step, "skipped": places.skipped},
        }
        restored = self.checkpointer.restore(target=target, shardings=shardings)
        self._check_extra(restored.extra)
        tree = restored.tree
        trained, _ = self.bones.split(tree["params"])
        counters = tree["counters"]
        self._saved = restored.step
        return State(counters["step"], trained, tree["opt_state"], tree["ema"], counters["skipped"])

    def _check_extra(self, extra: Mapping[str, Any]) -> None:
        now = self._extra()
        for key, what in (("fingerprint", "training data"), ("tokenizer_hash", "tokenizer")):
            then = extra.get(key)
            if then != now[key] and not self.settings.accept_new_data:
                raise DataError(
                    f"The {what} changed since the checkpoint: {then} then, {now[key]} now.",
                    "Restore them, choose another --workdir, or accept the change with "
                    "--config.train.accept_new_data=true.",
                )
        restore = getattr(self.inputs.source, "restore", None)
        if restore is not None:
            restore(extra.get("source", {}))

    def _extra(self) -> dict[str, Any]:
        return {
            "fingerprint": getattr(self.inputs.source, "fingerprint", ""),
            "tokenizer_hash": getattr(self.inputs.tokenizer, "hash", ""),
            "source": self.inputs.source.state(),
        }

    def save(self, state: State, metrics: Mapping[str, float]) -> None:
        """Save a state, once per step, with its evaluation (for checkpoint.keep_best)."""
        step = int(state.step)
        if step != self._saved:
            self.checkpointer.save(step, self._tree(state), self._extra(), dict(metrics))
            self._saved = step

    def close(self) -> None:
        """Wait for the last save."""
        self.checkpointer.close()
