# SPDX-License-Identifier: Apache-2.0
"""The one training loop: dispatch steps ahead, log, call hooks, save, go back, stop when told."""

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax

from llm.core import compilation, logs, profile, watchdog
from llm.core import metrics as metric_files
from llm.core.profile import StepTimer
from llm.errors import NonFiniteError, Preempted
from llm.train import bad_batches
from llm.train.bad_batches import Bad
from llm.train.ledger import Ledger
from llm.train.step import Frozen, State, Step, full_params


class Source(Protocol):
    """Data that training consumes: a pure function of the step, or rollouts that sample."""

    def batch(self, step: int, params: Any = None) -> Any:
        """Return this process's slice of the step's global batch."""

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, as JSON; {} for datasets.

        A source that keeps something also has `restore(state)`; one that measures itself has
        `metrics()`, of what happened since the last call.
        """


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
        norms_every: steps between lines with the gradient norm of every group; 0 never.
    """

    steps: int
    stop_after: int
    log_every: int
    max_bad_steps: int
    look_first: bool = False
    flops_per_step: float = 0.0
    peak_flops: float = 0.0
    norms_every: int = 0


Batches = Generator[tuple[int, Any], None, None]


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
        noticed: told of every bad step.
        roll_back: (spike) -> the state to go on from; None goes on from where it is.
        ledger: made of the time that this loop's `timer` sees; (spent) -> accounts.
        stopping: (step) -> True once a signal asked to stop.
        say: prints one line.
        bar: told the number of steps done, after each.
    """

    def __init__(
        self,
        plan: Plan,
        step: Step,
        batches: Callable[[int, Callable[[], Any]], Batches],
        *,
        writer: metric_files.Writer,
        hooks: Sequence[Hook] = (),
        save: Callable[[State, dict[str, float]], None],
        save_every: int = 0,
        noticed: Callable[[Bad], None] = lambda bad: None,
        roll_back: Callable[[Bad], State] | None = None,
        ledger: Callable[[Mapping[str, float]], Ledger] = Ledger,
        stopping: Callable[[int], bool] = lambda step: False,
        say: Callable[[str], None] = print,
        bar: Callable[[int], None] = lambda done: None,
    ):
        self.plan, self.step, self.batches, self.writer = plan, step, batches, writer
        self.hooks, self.save, self.save_every = hooks, save, save_every
        self.stopping, self.say, self.bar = stopping, say, bar
        self.latest: dict[str, float] = {}  # evaluated at this step
        self.noticed, self.roll_back = noticed, roll_back
        self.timer = StepTimer()
        self.ledger = ledger(self.timer.spent)
        self._waiting: list[Any] = []  # metrics still on the devices
        self._fetched: list[dict[str, float]] = []  # since the last line
        self._row = 0  # non-finite steps in a row
        self._done = 0  # steps made when a spike was found
        self._tokens = 0.0

    def run(self, state: State, frozen: Frozen, key: jax.Array) -> State:
        """Train from `state`; return the last state, which has been saved.

        Raises:
            Preempted: a signal came; the state is saved.
            NonFiniteError: too many bad steps in a row; nothing bad is saved.
        """
        end = min(self.plan.steps, self.plan.stop_after or self.plan.steps)
        self.ledger.restart(int(state.step), self.writer.last, self.writer.kept)
        if int(state.step) >= end:
            return state
        if int(state.step) == 0 and self.plan.look_first:
            self._call_hooks(0, end, state, {"loss": state.step})
        if self.roll_back is not None:
            self.save(state, {})  # whatever comes, there is a state to go back to
        while True:
            end_or_spike = self._stretch(state, frozen, key, end)
            if isinstance(end_or_spike, State):
                break
            state = self._go_back(end_or_spike)
        self._end("end", end)
        return end_or_spike

    def _stretch(self, state: State, frozen: Frozen, key: jax.Array, end: int) -> State | Bad:
        """Train up to the end, or to a spike that the run shall go back from."""
        start, self._row = int(state.step), int(state.skipped[1])
        holder = [state]
        batches = self.batches(start, lambda: full_params(holder[0].params, frozen))
        for done in range(start + 1, end + 1):
            watchdog.at("compile" if self.timer.spent["compile"] == 0 else "step", done)
            with self.timer.data():
                _, batch = next(batches)
            state, outputs = self.step(holder[0], frozen, batch, key)
            holder[0] = state
            self._waiting.append(outputs)
            self.timer.step(outputs["loss"])
            stop = self.stopping(done)
            saving = stop or done == end or (self.save_every and done % self.save_every == 0)
            logging = stop or done in (end, start + 1) or done % self.plan.log_every == 0
            if logging or saving:
                spike = self._look(done, outputs)
                if spike is not None:
                    batches.close()
                    return spike
            if logging:
                self._log(done)
            if not stop:
                self._evaluate(done, end, state, outputs)
            if saving:
                self._save(done, state, outputs)
            self.bar(done)
            if stop and done < end:
                raise self._stopped(done)
        return holder[0]

    def _stopped(self, done: int) -> Preempted:
        self._end("stop", done)
        return Preempted(
            f"Stopped by a signal after step {done}; the state is saved.",
            "Run the same command to resume.",
        )

    def _end(self, name: str, step: int) -> None:
        """Say and record where the time went."""
        seconds = {key: round(value, 3) for key, value in self.ledger.accounts().items()}
        logs.event(name, step=step, seconds=seconds)
        self.say(self.ledger.summary())

    def _save(self, done: int, state: State, outputs: Any) -> None:
        watchdog.at("save", done)
        before = self.timer.spent.get("checkpoint", 0.0)
        with self.timer.pause(outputs["loss"], "checkpoint"):
            self.save(state, self.latest)
        held = self.timer.spent["checkpoint"] - before
        values = {"perf/save_seconds": round(held, 4), **self.ledger.metrics()}
        self.writer.write(done, self.ledger.seconds(), values)

    def _look(self, done: int, outputs: Any) -> Bad | None:
        """Fetch what the steps since the last look measured; return a spike to go back from.

        Always before a save: a state after an unseen spike must not become the newest checkpoint.
        """
        fetched = [{k: float(v) for k, v in m.items()} for m in jax.device_get(self._waiting)]
        self._waiting.clear()
        self.timer.close(outputs["loss"])
        for number, metrics in enumerate(fetched, done - len(fetched) + 1):
            bad = bad_batches.find(number, metrics)
            self._row = self._row + 1 if bad and bad.reason == "non_finite" else 0
            if bad is None:
                continue
            self._tell(bad)
            self._check(number)
            if bad.reason == "spike" and self.roll_back is not None:
                self._done = done
                return bad
        self._fetched += fetched
        return None

    def _tell(self, bad: Bad) -> None:
        values = {k: v for k, v in bad._asdict().items() if k not in ("step", "reason")}
        logs.event(bad.reason, step=bad.step, **values)
        self.noticed(bad)
        if bad.reason == "spike":
            done = "applied" if bad.applied else "skipped"
            self.say(
                f"step {bad.step:>6}  spike: loss {bad.loss:.4g}, grad {bad.grad_norm:.4g}, "
                f"{bad.score:.1f} deviations above the median; update {done}"
            )

    def _go_back(self, bad: Bad) -> State:
        """Restore an earlier state and forget what was measured after it."""
        assert self.roll_back is not None
        with self.timer.pause((), "checkpoint"):
            state = self.roll_back(bad)
        step = int(state.step)
        self._fetched.clear()
        self.writer.rewind(step)
        self.ledger.go_back(self._done - step, self.writer.kept)
        values = {"train/rolled_back_from": bad.step, "train/spike_loss": bad.loss}
        self.writer.write(step, self.ledger.seconds(), {**values, **self.ledger.metrics()})
        logs.event("roll_back", step=step, spike=bad.step, loss=bad.loss, score=bad.score)
        self.say(f"step {bad.step:>6}  back to step {step}; the data from there on are left out")
        return state

    def _evaluate(self, done: int, end: int, state: State, outputs: Any) -> None:
        """Call the hooks before saving, so that a checkpoint knows its own evaluation.

        A hook that fails loses no step: the state is saved before its error ends the run. Of
        several processes the others may not fail, so that they could not save together.
        """
        self.latest = {}
        try:
            self._call_hooks(done, end, state, outputs)
        except Exception:
            if jax.process_count() == 1 and self._look(done, outputs) is None:
                self.save(state, {})
            raise

    def _call_hooks(self, done: int, end: int, state: State, outputs: Any) -> None:
        for hook in self.hooks:
            if hook.every and (done % hook.every == 0 or done == end):
                watchdog.at(hook.name, done)
                kind = "samples" if hook.name == "samples" else "evaluation"
                with self.timer.pause(outputs["loss"], kind):
                    values = hook.function(done, state)
                if values:
                    self.latest.update(values)
                    self.writer.write(done, self.ledger.seconds(), values)
                    logs.event("evaluation", step=done, name=hook.name, values=values)
                    shown = "  ".join(f"{k.split('/')[-1]} {v:.4g}" for k, v in values.items())
                    self.say(f"step {done:>6}  {hook.name}: {shown}")

    def _check(self, step: int) -> None:
        """Refuse to go on when updates have been non-finite for too long."""
        if self.plan.max_bad_steps and self._row >= self.plan.max_bad_steps:
            raise NonFiniteError(
                f"Loss or gradients were not finite for {self._row} steps up to step {step}.",
                "Lower config.schedule.peak, or look at bad_batches.jsonl; the newest checkpoint "
                "is sound.",
            )

    def _log(self, done: int) -> None:
        fetched, self._fetched = self._fetched, []
        last = fetched[-1]
        applied = [f for f in fetched if f.get("applied", float(math.isfinite(f["loss"])))]
        mean = metric_files.weighted_mean(applied, "weight")
        hidden = ("weight", "lr", "skipped", "tokens", "applied", "spike")
        values = {
            f"train/{k}": v
            for k, v in mean.items()
            if k not in hidden and not k.startswith("grad_norm/")
        }
        found = [bad_batches.find(0, f) for f in fetched]
        for name, reason in (("non_finite", "non_finite"), ("spikes", "spike")):
            count = sum(bad is not None and bad.reason == reason for bad in found)
            values.update({f"train/{name}": float(count)} if count else {})
        values["train/lr"] = last["lr"]
        values["train/skipped"] = last["skipped"]
        values.update(self._group_norms(done, fetched))
        self._tokens = sum(f["tokens"] for f in fetched) / len(fetched)
        values.update(self._speed())
        values["perf/programs"] = float(compilation.count())
        values.update(self.ledger.metrics())
        self.writer.write(done, self.ledger.seconds(), values)
        self.say(self._line(done, values))

    def _group_norms(self, done: int, fetched: list[dict[str, float]]) -> dict[str, float]:
        """Return the gradient norms by group of the newest step that is due, if one is."""
        every = self.plan.norms_every
        due = [
            metrics
            for number, metrics in enumerate(fetched, done - len(fetched) + 1)
            if every and number % every == 0
        ]
        return {k: v for k, v in due[-1].items() if k.startswith("grad_norm/")} if due else {}

    def _speed(self) -> dict[str, float]:
        values = self.timer.metrics()
        seconds = self.timer.seconds_per_step()
        if seconds and self._tokens:
            values["perf/tokens_per_s"] = self._tokens / seconds
            mfu = profile.utilisation(self.plan.flops_per_step, seconds, 1, self.plan.peak_flops)
            if mfu:
                values["perf/mfu"] = mfu
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
