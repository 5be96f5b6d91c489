# SPDX-License-Identifier: Apache-2.0
"""Where a run's time went, over all its tries: steps that count, and everything else.

Every account is cumulative seconds and is written to `metrics.jsonl` as `time/<account>` with each
log line and each save, so that the file itself carries the accounts over a crash. After a restart
or a roll-back to step s the accounts are those written at s; all the time spent since then is
`time/lost`, whatever it was spent on. The accounts always add up to the line's `time`.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

ACCOUNTS = ("steps", "data", "compile", "evaluation", "samples", "checkpoint", "start", "lost")


class Ledger:
    """Add up seconds by account.

    Args:
        spent: seconds of this try by account; grows while the run goes on.
        begun: when this try began, by `clock`.
        clock: returns seconds.
    """

    def __init__(
        self,
        spent: Mapping[str, float],
        begun: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._spent, self._clock = spent, clock
        self._begun = clock() if begun is None else begun
        self._zero: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._start = 0.0
        self.lost_steps = self.restarts = 0

    def restart(self, step: int, last: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
        """Go on from what an earlier try wrote; call before the first step.

        Args:
            step: where this try starts.
            last: the last line of that try.
            kept: its last line with accounts up to `step`; {} if there is none.
        """
        self._start = self._clock() - self._begun
        if not last:
            return
        self._begun -= float(last.get("time", 0.0))
        self.restarts = int(last.get("perf/restarts", 0)) + 1
        self.lost_steps = int(last.get("perf/lost_steps", 0)) + max(int(last["step"]) - step, 0)
        self._before = _accounts(kept)
        lost = float(last.get("time", 0.0)) - sum(self._before.values())
        self._before["lost"] = lost if lost > 0.01 else 0.0  # the file's numbers are rounded

    def go_back(self, steps: int, kept: Mapping[str, Any]) -> None:
        """Count everything since the accounts of `kept`, and so many steps, as lost."""
        now = self.seconds()
        self._zero, self._start = dict(self._spent), 0.0
        self._before = _accounts(kept)
        self._before["lost"] = now - sum(self._before.values())
        self.lost_steps += steps

    def seconds(self) -> float:
        """Return the running time of all tries."""
        return self._clock() - self._begun

    def accounts(self) -> dict[str, float]:
        """Return seconds by account; "other" is what nothing else claims."""
        found = dict.fromkeys(ACCOUNTS, 0.0) | self._before
        found["start"] += self._start
        for name, value in self._spent.items():
            found[name] = found.get(name, 0.0) + value - self._zero.get(name, 0.0)
        found.pop("other", None)
        return {**found, "other": max(self.seconds() - sum(found.values()), 0.0)}

    def metrics(self) -> dict[str, float]:
        """Return the accounts, goodput (time of steps that count over all time) and losses."""
        found = self.accounts()
        total = sum(found.values())
        return {
            "perf/goodput": found["steps"] / total if total > 0 else 0.0,
            **{f"time/{name}": round(value, 4) for name, value in found.items()},
            **({"perf/restarts": self.restarts} if self.restarts else {}),
            **({"perf/lost_steps": self.lost_steps} if self.lost_steps else {}),
        }

    def summary(self) -> str:
        """Say in one line where the time went."""
        found = {k: v for k, v in self.accounts().items() if v > 0}
        total = sum(found.values()) or 1.0
        largest = sorted(found.items(), key=lambda item: -item[1])
        shares = ", ".join(f"{name} {value / total:.1%}" for name, value in largest)
        line = f"time {total:.1f} s: {shares}"
        line += f"; restarts {self.restarts}" if self.restarts else ""
        return line + (f"; steps done twice {self.lost_steps}" if self.lost_steps else "")


def _accounts(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the accounts that a line of metrics carries, without what was lost."""
    found = {k.removeprefix("time/"): v for k, v in line.items() if k.startswith("time/")}
    return {k: float(v) for k, v in found.items() if k != "lost" and v is not None}
