# SPDX-License-Identifier: Apache-2.0
"""Begin or resume training state, save it and go back to it: a run's tie to its checkpoints."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from llm import files
from llm.core import checkpoint, logs, sharding, trees
from llm.core import config as configs
from llm.errors import DataError, NonFiniteError, StorageError
from llm.generate import bases
from llm.train import initial, optim, spikes
from llm.train.bad_batches import Bad
from llm.train.detour import Detour
from llm.train.settings import Inputs, Settings, keys
from llm.train.step import Frozen, State


class Keeper:
    """Begin or resume training state, save it, and go back to what was saved.

    Args:
        config: of the run.
        workdir: its folder.
        inputs: of the run.
        settings: its train section.
        bones: shapes and placement of the parameters.
        where: placement of the training state.
        spike: what to remember of losses, and when to go back.
    """

    def __init__(
        self,
        config: Any,
        workdir: str,
        inputs: Inputs,
        settings: Settings,
        bones: initial.Skeleton,
        where: initial.Placement,
        spike: spikes.Spikes = spikes.OFF,
    ):
        options = keys(config.checkpoint)
        self.every = options.pop("every", 0)
        self.inputs, self.settings, self.bones, self.where = inputs, settings, bones, where
        self.source, self.spike = Detour(inputs.source), spike
        self.directory = str(files.path(workdir) / "checkpoints")
        self.checkpointer = checkpoint.Checkpointer(
            self.directory,
            **configs.bind(checkpoint.Checkpointer, options, "checkpoint", given=("directory",)),
        )
        self._rest: dict[str, Any] = {}  # what is not trained but stored, by name
        self._base: dict[str, Any] = {}  # record of the model that holds what is not stored
        self._layout: Any = None
        self._saved = -1

    def begin(
        self, optimizer: optim.Optimizer, layout: sharding.Layout, seed: int
    ) -> tuple[State, Frozen]:
        """Return state and frozen part: resumed, warm-started or fresh."""
        if self.inputs.start is not None:
            params = initial.start_parameters(
                self.inputs.start,
                self.inputs.model,
                self.bones,
                layout,
                seed,
                self.inputs.start_name,
            )
        else:
            params = initial.fresh_parameters(self.inputs.model, self.bones, layout, seed)
        state, frozen = initial.begin(
            params, self.inputs.objective, optimizer, self.bones, self.where
        )
        self._layout = layout
        rest = trees.flatten(frozen.params)
        names = self.inputs.base.names if self.inputs.base is not None else frozenset()
        self._rest = {name: leaf for name, leaf in rest.items() if name not in names}
        left_out = {name: leaf for name, leaf in rest.items() if name in names}
        if self.inputs.base is not None and left_out:
            self._base = self.inputs.base.record(files.path(self.directory).parent, left_out)
        if not checkpoint.has_checkpoints(self.directory):
            return self._remembering(state, {}), frozen
        state = self._resume()  # damaged checkpoints alone must not restart the run
        return state, frozen._replace(params=trees.unflatten(left_out | self._rest))

    def _remembering(self, state: State, saved: Any) -> State:
        """Give a state its history of losses: as saved, or an empty one."""
        history = spikes.empty(self.spike.window) if self.spike.window else ()
        made = jax.tree.map(np.asarray, spikes.from_json(saved, history))
        return state._replace(
            history=jax.device_put(made, sharding.replicated(self._layout.mesh)) if made else ()
        )

    def _tree(self, state: State) -> dict[str, Any]:
        return {
            "params": self._stored(state.params),
            "opt_state": state.opt_state,
            "ema": state.ema,
            "counters": {"step": state.step, "skipped": state.skipped},
        }

    def _stored(self, trained: Any) -> Any:
        """Return a tree's trained leaves with those others that no base holds."""
        return trees.merge(trained, trees.unflatten(self._rest)) if self._rest else trained

    def _resume(self, step: int | None = None) -> State:
        """Restore a step, or the newest verified one, onto this mesh.

        Raises:
            DataError: the data or the tokenizer are not those the run was trained on.
        """
        shapes, places = self.where.state_shapes, self.where.state
        rest_places = {name: leaf.sharding for name, leaf in self._rest.items()}
        target = {
            "params": self._stored(shapes.params),
            "opt_state": shapes.opt_state,
            "ema": shapes.ema,
            "counters": {"step": shapes.step, "skipped": shapes.skipped},
        }
        shardings = {
            "params": trees.merge(places.params, trees.unflatten(rest_places)),
            "opt_state": places.opt_state,
            "ema": places.ema,
            "counters": {"step": places.step, "skipped": places.skipped},
        }
        restored = self.checkpointer.restore(target=target, step=step, shardings=shardings)
        self._check_extra(restored.extra)
        tree = restored.tree
        trained, rest = self.bones.split(tree["params"])
        self._rest = trees.flatten(rest)
        counters = tree["counters"]
        self._saved = restored.step
        state = State(
            counters["step"], trained, tree["opt_state"], tree["ema"], counters["skipped"]
        )
        logs.event("resume", step=restored.step)
        return self._remembering(state, restored.extra.get("history"))

    def _check_extra(self, extra: Mapping[str, Any]) -> None:
        now = self._extra(())
        for key, what in (("fingerprint", "training data"), ("tokenizer_hash", "tokenizer")):
            then = extra.get(key)
            if then != now[key] and not self.settings.accept_new_data:
                raise DataError(
                    f"The {what} changed since the checkpoint: {then} then, {now[key]} now.",
                    "Restore them, choose another --workdir, or accept the change with "
                    "--config.train.accept_new_data=true.",
                )
        if extra.get(bases.RECORD, {}).get("hash") != self._base.get("hash"):
            raise bases.changed(self.inputs.start_name, files.path(self.directory).parent)
        self.source.restore(extra.get("source", {}))

    def _extra(self, history: Any) -> dict[str, Any]:
        return {
            "fingerprint": getattr(self.inputs.source, "fingerprint", ""),
            "tokenizer_hash": getattr(self.inputs.tokenizer, "hash", ""),
            "source": self.source.state(),
            "history": spikes.to_json(history),
            **({bases.RECORD: self._base} if self._base else {}),
        }

    def save(self, state: State, metrics: Mapping[str, float]) -> None:
        """Save a state, once per step, with its evaluation (for checkpoint.keep_best)."""
        step = int(state.step)
        if step != self._saved:
            extra = self._extra(state.history)
            self.checkpointer.save(step, self._tree(state), extra, dict(metrics))
            self._saved = step
            logs.event("save", step=step, seconds=round(self.checkpointer.blocked, 4))

    def roll_back(self, bad: Bad) -> State:
        """Restore the newest checkpoint before a spike; the data from there on are left out.

        Of these, one that every run makes is preferred to one that a signal caused: a run that
        was stopped and resumed goes back to where the unstopped one does.

        Raises:
            NonFiniteError: the run went back too often, or there is nothing to go back to.
        """
        jumps = list(self.source.jumps)
        if len(jumps) >= self.spike.max:
            raise NonFiniteError(
                f"Loss or gradients spiked at step {bad.step} after {len(jumps)} roll-backs.",
                "Lower config.schedule.peak, look at bad_batches.jsonl, or raise "
                "config.train.spike.max; the newest checkpoint is sound.",
            )
        self.checkpointer.wait()
        found = [step for step in checkpoint.list_steps(self.directory) if step < bad.step]
        for step in sorted(found, key=lambda s: (s % (self.every or 1) == 0, s), reverse=True):
            try:
                state = self._resume(step)
            except StorageError as error:
                logs.event("log", message=error.problem)
                continue
            self.source.jumps = jumps  # those made since that checkpoint, too
            self.source.jump(step, max(self.spike.skip, bad.step - step))
            return state
        raise NonFiniteError(
            f"The loss spiked at step {bad.step}, and no checkpoint before it verifies.",
            "Look at bad_batches.jsonl; set config.train.spike.action=skip to go on.",
        )

    def close(self) -> None:
        """Wait for the last save."""
        self.checkpointer.close()
