# SPDX-License-Identifier: Apache-2.0
"""What was decided: a log that only grows, and the preference pairs and counts that it means."""

import itertools
import json
import statistics
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from llm import files
from llm.core import agreement
from llm.core.lines import Lines
from llm.errors import UserError
from llm.label.tasks import Task, order

CHOICES = ("left", "right", "tie", "both_bad", "skip")


class Refused(UserError):
    """A request of the page that cannot be granted."""


class Label(NamedTuple):
    """One decision.

    Attributes:
        task: its id.
        annotator: who.
        choice: one of `CHOICES`, or "ranking".
        tiers: answers by their number in the task, best first; equal ones share a tier. Empty for
            "both_bad" and "skip".
        order: which answer stood at each place, left to right.
        seconds: from showing to deciding.
        time: UTC, ISO 8601.
    """

    task: str
    annotator: str
    choice: str
    tiers: tuple[tuple[int, ...], ...]
    order: tuple[int, ...]
    seconds: float
    time: str


def tiers_of(choice: str, ranking: Any, shown: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Translate a decision about places into tiers of answers.

    Args:
        choice: one of `CHOICES` or "ranking".
        ranking: for "ranking" the places (0 is the leftmost), best first, in tiers: [[1], [0, 2]].
        shown: which answer stood at each place.

    Raises:
        Refused: the decision is not one about these places.
    """
    if choice in ("both_bad", "skip"):
        return ()
    if choice == "tie":
        return (tuple(sorted(shown)),)
    if choice in ("left", "right") and len(shown) == 2:
        best = shown[0] if choice == "left" else shown[1]
        return ((best,), (sum(shown) - best,))
    if choice == "ranking" and isinstance(ranking, list) and all(ranking):
        flat = [place for tier in ranking if isinstance(tier, list) for place in tier]
        whole = all(type(place) is int for place in flat)
        if whole and sorted(flat) == list(range(len(shown))):
            return tuple(tuple(sorted(shown[place] for place in tier)) for tier in ranking)
    raise Refused("The decision does not fit the answers shown.", "Choose again.")


def pairs(tiers: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """Yield (better, worse) for every two answers of different tiers."""
    for higher, lower in itertools.combinations(tiers, 2):
        yield from itertools.product(higher, lower)


class Ledger:
    """The decisions of a folder, kept in labels.jsonl; every change is on disk before it counts.

    Args:
        folder: where the files are.
        tasks: all that may be labelled.
        seed: of the orders shown.
    """

    def __init__(self, folder: str, tasks: Sequence[Task], seed: int = 0):
        self.folder = files.path(folder)
        self.tasks = {task.id: task for task in tasks}
        self.seed = seed
        self._log = Lines(self.folder / "labels.jsonl", durable=True)
        self._lock = threading.Lock()
        self._labels: dict[tuple[str, str], Label] = {}  # (annotator, task): in order of deciding
        for line in self._log.read().split("\n"):
            self._apply(line)

    def _apply(self, line: str) -> None:
        """Take one line of the log; one that a kill tore was never confirmed, and is passed by."""
        try:
            event = files.parse_json(line)
            key = (event["annotator"], event["task"])
            if event["event"] == "undo":
                self._labels.pop(key, None)
                return
            tiers = tuple(tuple(tier) for tier in event["tiers"])
            rest = {k: event[k] for k in ("choice", "seconds", "time")}
            self._labels[key] = Label(
                task=key[1], annotator=key[0], tiers=tiers, order=tuple(event["order"]), **rest
            )
        except (ValueError, KeyError, TypeError):
            return

    def labels(self) -> list[Label]:
        """Return the decisions that stand, in the order they were made."""
        return list(self._labels.values())

    def done(self, annotator: str) -> set[str]:
        """Return the ids of the tasks an annotator has decided or skipped."""
        return {task for who, task in self._labels if who == annotator}

    def label(
        self, annotator: str, task: str, choice: str, ranking: Any = None, seconds: float = 0.0
    ) -> Label:
        """Record a decision.

        Raises:
            Refused: the task is unknown or already decided, or the decision does not fit it.
            OSError: the disk fails; nothing has changed then.
        """
        with self._lock:
            if task not in self.tasks:
                raise Refused("The task is unknown.", "Load the page again.")
            if (annotator, task) in self._labels:
                raise Refused("The task is decided already.", "Undo it to decide again.")
            shown = order(self.tasks[task], annotator, self.seed)
            tiers = tiers_of(choice, ranking, shown)
            made = Label(task, annotator, choice, tiers, shown, round(seconds, 2), _now())
            self._log.append(json.dumps({"event": "label", **made._asdict()}, ensure_ascii=False))
            self._labels[annotator, task] = made
            return made

    def undo(self, annotator: str) -> str:
        """Take back an annotator's newest decision; return its task.

        Raises:
            Refused: there is none.
        """
        with self._lock:
            mine = [task for who, task in self._labels if who == annotator]
            if not mine:
                raise Refused("There is nothing to undo.")
            event = {"event": "undo", "annotator": annotator, "task": mine[-1], "time": _now()}
            self._log.append(json.dumps(event, ensure_ascii=False))
            del self._labels[annotator, mine[-1]]
            return mine[-1]

    def export(self) -> int:
        """Write preferences.jsonl and summary.json anew; return the number of pairs."""
        with self._lock:
            found = [pair for label in self.labels() for pair in self._pairs(label)]
            lines = [json.dumps(pair, ensure_ascii=False) + "\n" for pair in found]
            files.write_atomic(self.folder / "preferences.jsonl", "".join(lines))
            files.write_json(self.folder / "summary.json", self.summary())
        return len(found)

    def _pairs(self, label: Label) -> Iterator[dict[str, Any]]:
        task = self.tasks.get(label.task)
        if task is None:
            return
        for better, worse in pairs(label.tiers):
            chosen, rejected = task.answers[better], task.answers[worse]
            if isinstance(task.prompt, list):
                sides: tuple[Any, Any] = (_said(chosen), _said(rejected))
            else:
                sides = (chosen, rejected)
            meta = {
                "task": task.id,
                "annotator": label.annotator,
                "time": label.time,
                "seconds": label.seconds,
                "choice": label.choice,
                "answers": len(task.answers),
                "places": [label.order.index(better), label.order.index(worse)],
                "models": [task.models[better], task.models[worse]],
                "source": task.source,
            }
            yield {"prompt": task.prompt, "chosen": sides[0], "rejected": sides[1], "meta": meta}

    def summary(self) -> dict[str, Any]:
        """Count decisions by annotator, and say how far annotators agree."""
        by_annotator: dict[str, list[Label]] = {}
        for label in self.labels():
            by_annotator.setdefault(label.annotator, []).append(label)
        counts = {
            name: {
                "labels": len(found),
                "choices": dict(sorted(Counter(label.choice for label in found).items())),
                "median_seconds": statistics.median(label.seconds for label in found),
                "first_place_wins": _first_place(found),
            }
            for name, found in sorted(by_annotator.items())
        }
        judged = {name: self._judgements(found) for name, found in by_annotator.items()}
        return {
            "tasks": len(self.tasks),
            "annotators": counts,
            "agreement": agreement.report(judged),
        }

    def _judgements(self, labels: Sequence[Label]) -> Mapping[Any, str]:
        """Return a category per two answers of a task: which is better, tie, or all are bad.

        The two are told apart by a hash of their texts: were it by their order in the file, which
        may tell the better one, chance would look larger than it is.
        """
        found = {}
        for label in labels:
            task = self.tasks.get(label.task)
            if task is None or label.choice == "skip":
                continue
            hashes = [files.hash_bytes(text.encode("utf-8")) for text in task.answers]
            numbers = sorted(range(len(hashes)), key=lambda i: (hashes[i], i))
            better = set(pairs(label.tiers))
            for one, other in itertools.combinations(numbers, 2):
                category = "tie"
                if label.choice == "both_bad":
                    category = "both_bad"
                elif (one, other) in better or (other, one) in better:
                    category = "first" if (one, other) in better else "second"
                found[label.task, one, other] = category
        return found


def _first_place(labels: Sequence[Label]) -> float | None:
    """Return the share of decided tasks in which the leftmost answer was among the best.

    Without a bias of place it is near one in the number of answers.
    """
    decided = [label for label in labels if len(label.tiers) > 1]
    if not decided:
        return None
    return sum(label.order[0] in label.tiers[0] for label in decided) / len(decided)


def _said(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
