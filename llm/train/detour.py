# SPDX-License-Identifier: Apache-2.0
"""Leave data out after a roll-back: which step's data a training step reads, saved with the run."""

from collections.abc import Mapping
from typing import Any


class Detour:
    """A source whose steps jump over windows of data.

    Training step s reads step s + (sum of the skips made at or before s) of the source: still a
    pure function of the step and of the jumps, which are part of `state`.

    Args:
        source: what to read from.
    """

    def __init__(self, source: Any):
        self.source = source
        self.jumps: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def jump(self, step: int, skip: int) -> None:
        """Leave out `skip` steps' worth of data from training step `step` on."""
        self.jumps.append((step, skip))

    def data_step(self, step: int) -> int:
        """Return the source's step that a training step reads."""
        return step + sum(skip for at, skip in self.jumps if step >= at)

    def batch(self, step: int, params: Any = None) -> Any:
        """Return the batch of a training step."""
        return self.source.batch(self.data_step(step), params)

    def ids(self, step: int) -> Any:
        """Return the example ids of a training step."""
        return self.source.ids(self.data_step(step))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep: the jumps, and the source's own state."""
        jumps = [list(jump) for jump in self.jumps]
        return {**self.source.state(), **({"jumps": jumps} if jumps else {})}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.jumps = [(int(at), int(skip)) for at, skip in state.get("jumps", ())]
        inner = getattr(self.source, "restore", None)
        if inner is not None:
            inner({key: value for key, value in state.items() if key != "jumps"})
