# SPDX-License-Identifier: Apache-2.0
"""The one training loop: dispatch steps ahead, log, call hooks, save, stop when told."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from llm.core import metrics as metric_files
from llm.core.profile import StepTimer
from llm.errors import NonFiniteError, Preempted
from llm.train.step import Frozen, State, Step


class Source(Protocol):
    """Data that training consumes: a pure function of the step, or rollouts that sample."""

    def batch(self, step: int, params: Any = None) -> Any:
        """Return this process's slice of the step's global batch."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep; {} for datasets."""


class Hook(NamedTuple):
    """Something done every so many steps: (step, state) -> metrics to log."""

    name: str
    function: Callable[[int, State], dict[str, float]]
    every: int


class Plan(NamedTuple):
    """How long to train and how often to look.

    Attributes:
        steps: last step.
        stop_after: leave cleanly after this step (0: never); the schedule still ends at `steps`.
        log_every: steps between log lines; also the longest stretch without a host sync.
        max_bad_steps: non-finite steps in a row that end the run.
        look_first: call the hooks before the first step too.
        flops_per_step: model FLOPs of a full batch, or 0 if unknown.
        peak_flops: of all devices together, or 0 if unknown: no MFU is shown.
    """

    steps: int
    stop_after: int
    log_every: int
    max_bad_steps: int
    look_first: bool = False
    flops_per_step: float = 0.0
    peak_flops: float = 0.0


class Loop:
    """Run steps until the plan ends, a signal arrives, or numbers stay non-finite.

    Args:
        plan: how long.
        step: the compiled update.
        batches: yields (step, device batch); called with the current parameters' getter.
        writer: takes the metrics.
        hooks: evaluations, samples.
        save: (state, evaluations of this step) -> None, called by `save_every` and at the end.
        save_every: steps between saves; 0 for the end only.
        stopping: (step) -> True once a signal asked to stop.
        say: prints one line.
        bar: told the number of steps done, after each.
    """

    def __init__(
        self,
        plan: Plan,
        step: Step,
        batches: Callable[[int, Callable[[], Any]], Iterator[tuple[int, Any]]],
        *,
        writer: metric_files.Writer,
        hooks: Sequence[Hook] = (),
        save: Callable[[State, dict[str, float]], None],
        save_every: int = 0,
        stopping: Callable[[int], bool] = lambda step: False,
        say: Callable[[str], None] = print,
        bar: Callable[[int], None] = lambda done: None,
    ):
        self.plan, self.step, self.batches, self.writer = plan, step, batches, writer
        self.hooks, self.save, self.save_every = hooks, save, save_every
        self.stopping, self.say, self.bar = stopping, say, bar
        self.latest: dict[str, float] = {}  # evaluated at this step
        self.timer = StepTimer()
        self.begin = time.perf_counter() - writer.seconds_before
        self._waiting: list[Any] = []  # metrics still on the devices
        self._tokens = 0.0

    def run(self, state: State, frozen: Frozen, key: jax.Array) -> State:
        """Train from `state`; return the last state, which has been saved.

        Raises:
            Preempted: a signal came; the state is saved.
            NonFiniteError: too many bad steps in a row; nothing bad is saved.
        """
        start = int(state.step)
        end = min(self.plan.steps, self.plan.stop_after or self.plan.steps)
        if start >= end:
            return state
        holder = [state]
        batches = self.batches(start, lambda: holder[0].params)
        outputs: Any = state.step
        if start == 0 and self.plan.look_first:
            self._call_hooks(0, end, state, {"loss": state.step})
        for done in range(start + 1, end + 1):
            with self.timer.data():
                _, batch = next(batches)
            state, outputs = self.step(holder[0], frozen, batch, key)
            holder[0] = state
            self._waiting.append(outputs)
            self.timer.step(outputs["loss"])
            stop = self.stopping(done)
            if done % self.plan.log_every == 0 or done in (end, start + 1) or stop:
                self._log(done, state)
            if not stop:
                self._evaluate(done, end, state, outputs)
            due = self.save_every and done % self.save_every == 0
            if due or stop or done == end:
                self._check(done, state)
                with self.timer.pause(outputs["loss"]):
                    self.save(state, self.latest)
            self.bar(done)
            if stop and done < end:
                raise Preempted(
                    f"Stopped by a signal after step {done}; the state is saved.",
                    "Run the same command to resume.",
                )
        return holder[0]

    def _evaluate(self, done: int, end: int, state: State, outputs: Any) -> None:
        """Call the hooks before saving, so that a checkpoint knows its own evaluation.

        A hook that fails loses no step: the state is saved before its error ends the run.
        """
        self.latest = {}
        try:
            self._call_hooks(done, end, state, outputs)
        except Exception:
            self._check(done, state)
            self.save(state, {})
            raise

    def _call_hooks(self, done: int, end: int, state: State, outputs: Any) -> None:
        for hook in self.hooks:
            if hook.every and (done % hook.every == 0 or done == end):
                with self.timer.pause(outputs["loss"]):
                    values = hook.function(done, state)
                if values:
                    self.latest.update(values)
                    self.writer.write(done, self._seconds(), values)
                    shown = "  ".join(f"{k.split('/')[-1]} {v:.4g}" for k, v in values.items())
                    self.say(f"step {done:>6}  {hook.name}: {shown}")

    def _seconds(self) -> float:
        return time.perf_counter() - self.begin

    def _check(self, done: int, state: State) -> None:
        """Refuse to go on when updates have been non-finite for too long."""
        in_row = int(state.skipped[1])
        if self.plan.max_bad_steps and in_row >= self.plan.max_bad_steps:
            raise NonFiniteError(
                f"Loss or gradients were not finite for {in_row} steps up to step {done}.",
                "Lower config.schedule.peak, or look at the data of these steps; "
                "the newest checkpoint is sound.",
            )

    def _log(self, done: int, state: State) -> None:
        fetched = [{k: float(v) for k, v in m.items()} for m in jax.device_get(self._waiting)]
        self._waiting.clear()
        mean = metric_files.weighted_mean(fetched, "weight")
        last = fetched[-1]
        hidden = ("weight", "lr", "skipped", "tokens")
        values = {f"train/{k}": v for k, v in mean.items() if k not in hidden}
        if not np.isfinite([f["loss"] for f in fetched]).all():
            values["train/non_finite"] = float(sum(not np.isfinite(f["loss"]) for f in fetched))
        values["train/lr"] = last["lr"]
        values["train/skipped"] = last["skipped"]
        self._tokens = sum(f["tokens"] for f in fetched) / len(fetched)
        values.update(self._speed())
        self.writer.write(done, self._seconds(), values)
        self.say(self._line(done, values))
        self._check(done, state)

    def _speed(self) -> dict[str, float]:
        values = self.timer.metrics()
        seconds = self.timer.seconds_per_step()
        if seconds and self._tokens:
            values["perf/tokens_per_s"] = self._tokens / seconds
            if self.plan.flops_per_step and self.plan.peak_flops:
                values["perf/mfu"] = self.plan.flops_per_step / seconds / self.plan.peak_flops
        return values

    def _line(self, done: int, values: dict[str, float]) -> str:
        parts = [f"step {done:>6}/{self.plan.steps}"]
        parts.append(f"loss {values.get('train/loss', float('nan')):.4f}")
        for name in ("accuracy", "reward_accuracy"):
            if f"train/{name}" in values:
                parts.append(f"{name} {values[f'train/{name}']:.3f}")
        parts.append(f"lr {values['train/lr']:.2e}  grad {values.get('train/grad_norm', 0):.2f}")
        if "perf/tokens_per_s" in values:
            parts.append(f"{values['perf/tokens_per_s']:,.0f} tok/s")
        if "perf/step_seconds" in values:
            left = (self.plan.steps - done) * values["perf/step_seconds"]
            parts.append(f"eta {int(left // 60)}:{int(left % 60):02d}")
        if "perf/mfu" in values:
            parts.append(f"mfu {values['perf/mfu']:.1%}")
        return "  ".join(parts)
