# SPDX-License-Identifier: Apache-2.0
"""Clean one shard: read, plant, normalise, filter, redact, sign. Pure up to its output files."""

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm.corpus import bias, filters, histograms, inject, minhash, origin, sources, stored, units
from llm.corpus.documents import Document, Drop
from llm.text import normalize, pii, records
from llm.text.views import views

BATCH = 256
SAMPLES = 3  # dropped documents kept per reason and shard, for the report
EXCERPT = 400

# Files of one shard in the working folder.
DOCUMENTS, ARRAYS = "{:05d}.jsonl.zst", "{:05d}.npz"
BANDS, SHINGLES, UNITS = "{:05d}.bands.npy", "{:05d}.shingles.npy", "{:05d}.{}.npy"


class Ledger:
    """Count what happens to documents, step by step."""

    def __init__(self) -> None:
        self.steps: dict[str, Counter] = defaultdict(Counter)
        self.reasons: dict[str, dict[str, Any]] = {}
        self.samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.breakdown: dict[str, Counter] = {"kind": Counter(), "licence": Counter()}
        self.pii: Counter = Counter()
        self.representation: Counter = Counter()
        self.histograms: dict[str, dict[str, Any]] = {}
        self.borderline: dict[str, list[dict[str, Any]]] = {}  # kept, nearest to the threshold
        self.truth: list[dict[str, Any]] = []

    def enter(self, step: str, batch: list[Document]) -> None:
        """Count documents and bytes that reach a step; planted ones apart."""
        counter = self.steps[step]
        for document in batch:
            planted = "injected" in document["meta"]
            counter["planted" if planted else "documents"] += 1
            if not planted:
                counter["bytes"] += len(document["text"].encode("utf-8", "replace"))

    def drop(self, step: str, document: Document, drop: Drop) -> None:
        """Count a dropped document by reason and keep a masked sample."""
        if "injected" in document["meta"]:
            self.truth.append(_truth(document, f"dropped:{drop.reason}"))
            return
        entry = self.reasons.setdefault(
            drop.reason, {"step": step, "count": 0, "bytes": 0, "threshold": drop.threshold}
        )
        entry["count"] += 1
        entry["bytes"] += len(document["text"].encode("utf-8", "replace"))
        rank = hashlib.blake2b(document["id"].encode(), digest_size=8).hexdigest()
        self.samples[drop.reason].append(
            {
                "rank": rank,
                "id": document["id"],
                "value": drop.value,
                "threshold": drop.threshold,
                "text": _masked(document["text"]),
            }
        )
        self.samples[drop.reason] = sorted(
            self.samples[drop.reason], key=lambda sample: sample["rank"]
        )[:SAMPLES]

    def measure(self, step: str, batch: list[Document]) -> None:
        """Take the values that a filter noted into the histograms of its rules, and clear them."""
        seen: dict[str, list[tuple[float, Document]]] = defaultdict(list)
        bounds: dict[str, tuple[float, int]] = {}
        for document in batch:
            noted = document.get("_checks", [])
            if "injected" not in document["meta"]:
                for reason, value, threshold, sign in noted:
                    seen[reason].append((value, document))
                    bounds[reason] = (threshold, sign)
            noted.clear()
        for reason, pairs in seen.items():
            threshold, sign = bounds[reason]
            values = np.array([value for value, _ in pairs], np.float64)
            fresh = histograms.empty(step, threshold, sign)
            histogram = self.histograms.setdefault(reason, fresh)
            inside = sign * (values - threshold) >= 0
            histogram["kept"].update(histograms.bins(values[inside], threshold))
            histogram["lost"].update(histograms.bins(values[~inside], threshold))
            if inside.any():
                nearest = int(np.argmin(np.where(inside, np.abs(values - threshold), np.inf)))
                value, document = pairs[nearest]
                row = {"id": document["id"], "value": float(value), "threshold": threshold}
                row["text"] = document["text"][: 4 * EXCERPT]
                rows = [*self.borderline.get(reason, []), row]
                self.borderline[reason] = histograms.closest(rows)

    def dump(self) -> dict[str, Any]:
        """Return the counts as JSON."""
        return {
            "steps": {name: dict(counter) for name, counter in self.steps.items()},
            "reasons": self.reasons,
            "samples": dict(self.samples),
            "breakdown": {name: dict(counter) for name, counter in self.breakdown.items()},
            "pii": dict(self.pii),
            "representation": dict(self.representation),
            "histograms": self.histograms,
            "borderline": {
                reason: [{**row, "text": _masked(row["text"])} for row in rows]
                for reason, rows in self.borderline.items()
            },
            "truth": self.truth,
        }


def _masked(text: str) -> str:
    """Return the beginning of a text without personal data."""
    excerpt, _ = pii.redact(text[: 4 * EXCERPT], pii.available())
    return excerpt[:EXCERPT]


def clean_shard(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Clean the shard a task names and write its documents, arrays and shingles.

    Args:
        task: {"index", "shard", "plan": {source, normalise, filters, pii, inject, dedup,
            bias, seed}}.
        folder: where the outputs go.

    Returns:
        counts, samples and the list of written files, as the engine stores them.
    """
    started = time.perf_counter()
    plan, index = task["plan"], task["index"]
    ledger, report = Ledger(), records.ReadReport()
    chain = filters.build(**plan["filters"])
    how = normalize.options(**plan["normalise"])
    kept: list[Document] = []
    arrays: list[dict[str, np.ndarray]] = []
    signatures: list[minhash.Signatures] = []
    runs: dict[str, list[units.Units]] = {name: [] for name in measured(plan["dedup"])}
    for batch in _batches(sources.get(plan["source"]).read(task["shard"], report), plan):
        ledger.enter("read", batch)
        batch = _normalise(batch, how, ledger)
        for name, function in chain:
            ledger.enter(name, batch)
            entered = batch
            batch, dropped = filters.apply(function, batch)
            ledger.measure(name, entered)
            for document, drop in dropped:
                ledger.drop(name, document, drop)
        ledger.enter("redact", batch)
        _redact(batch, plan["pii"], ledger)
        if plan["dedup"]["near"] != "off":
            signatures.append(_sign(batch, plan["dedup"]))
        for name, parts in runs.items():
            parts.append(units.measure([d["text"] for d in batch], name))
        arrays.append(_arrays(batch))
        if plan["bias"]["count"] or plan["bias"]["balance"]:
            arrays[-1]["lean"] = bias.leanings(views(batch))
        if plan["bias"]["count"]:
            real = [d for d in batch if "injected" not in d["meta"]]
            ledger.representation.update(bias.count(views(real), plan["bias"]["window"]))
        for document in batch:
            for name, counter in ledger.breakdown.items():
                if "injected" not in document["meta"]:
                    counter[_label(document, name)] += 1
            for note in ("_view", "_checks"):
                document.pop(note, None)
        kept += batch
    outputs = _write(folder, index, kept, arrays, signatures, runs)
    read = ledger.steps["read"]
    return {
        "files": outputs,
        "documents": read["documents"],
        "bytes": read["bytes"],
        "read_errors": report.errors,
        "error_examples": report.examples,
        "rejected": report.rejected,
        "seconds": time.perf_counter() - started,
        **ledger.dump(),
    }


def _batches(documents: Iterator[Document], plan: dict[str, Any]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    for document in documents:
        batch.append(document)
        if plan["inject"]["kinds"]:
            batch += inject.plant(document, seed=plan["seed"], **plan["inject"])
        if len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _normalise(batch: list[Document], how: normalize.Options, ledger: Ledger) -> list[Document]:
    ledger.enter("normalise", batch)
    kept = []
    for document in batch:
        document["text"] = normalize.normalize(document["text"], how)
        if document["text"].strip():
            kept.append(document)
        else:
            ledger.drop("normalise", document, Drop("empty", 0, 1))
    return kept


def _redact(batch: list[Document], plan: dict[str, Any], ledger: Ledger) -> None:
    """Hide personal data in place, and note what became of planted truth."""
    for document in batch:
        planted = document["meta"].get("injected")
        if plan["types"]:
            document["text"], counts = pii.redact(
                document["text"], tuple(plan["types"]), plan["style"], plan["seed"]
            )
            if counts and not planted:
                ledger.pii.update(counts)
        if planted:
            ledger.truth.append(_truth(document, "kept"))


def _truth(document: Document, outcome: str) -> dict[str, Any]:
    """State what was planted in a document and whether the cleaning undid it."""
    planted, text = document["meta"]["injected"], document["text"]
    row = {"id": document["id"], "outcome": outcome, **planted}
    if planted["kind"] == "email" and outcome == "kept":
        row["emails_hidden"] = sum(address not in text for address in planted["emails"])
        row["decoys_untouched"] = sum(decoy in text for decoy in planted["decoys"])
    elif planted["kind"] == "mojibake" and outcome == "kept":
        row["repaired"] = planted["line"] in text
    return row


def _sign(batch: list[Document], dedup: dict[str, Any]) -> minhash.Signatures:
    return minhash.sign(
        views(batch), bands=dedup["bands"], rows=dedup["rows"], n_gram=dedup["n_gram"]
    )


def measured(dedup: Mapping[str, Any]) -> list[str]:
    """Return the units whose repeats are looked for."""
    return [name for name in units.UNITS if dedup["repeats"].get(name)]


def _label(document: Document, name: str) -> str:
    if name == "licence":
        return str(document.get("licence", "not stated"))
    return str(document["meta"].get("kind", document["source"]))


def text_key(text: str) -> bytes:
    """Hash a text for exact deduplication: case and white space do not count."""
    joined = " ".join(text.lower().split())
    return hashlib.blake2b(joined.encode("utf-8", "replace"), digest_size=16).digest()


def _arrays(batch: list[Document]) -> dict[str, np.ndarray]:
    """Collect what deduplication and splitting need to know of each document."""
    count = len(batch)
    exact = b"".join(text_key(d["text"]) for d in batch)
    names = b"".join(_key(d["id"]) for d in batch)
    groups = b"".join(_key(d.get("_group") or d["id"]) for d in batch)
    sizes = (len(d["text"].encode("utf-8", "replace")) for d in batch)
    return {
        "exact": np.frombuffer(exact, np.uint64).reshape(count, 2),
        "name": np.frombuffer(names, np.uint64),
        "group": np.frombuffer(groups, np.uint64),
        "url": np.fromiter((_address(d) for d in batch), np.uint64, count),
        "size": np.fromiter(sizes, np.int64, count),
        "score": np.fromiter((_score(d) for d in batch), np.float32, count),
        "lean": np.zeros(count, np.int8),
        "planted": np.fromiter(("injected" in d["meta"] for d in batch), np.bool_, count),
    }


def _address(document: Document) -> int:
    """Return a key of a document's address, 0 where it has none."""
    address = origin.same_address(str(document.get("url") or ""))
    return int.from_bytes(_key(address), "little") if address else 0


def _score(document: Document) -> float:
    """Return the quality that a filter or the source noted; 0 where none did."""
    noted = document["meta"].get("quality", 0.0)
    return float(noted) if isinstance(noted, int | float) else 0.0


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest()


def _write(
    folder: Path,
    index: int,
    kept: list[Document],
    arrays: list[dict[str, np.ndarray]],
    signatures: list[minhash.Signatures],
    runs: dict[str, list[units.Units]],
) -> list[dict[str, Any]]:
    """Write a shard's documents and arrays; return the names and hashes of the files."""
    written = [records.write_shard(folder / DOCUMENTS.format(index), kept)]
    arrays = arrays or [_arrays([])]
    columns = {name: np.concatenate([part[name] for part in arrays]) for name in arrays[0]}
    if signatures:
        bands = np.concatenate([part.bands for part in signatures])
        written.append(stored.save(folder / BANDS.format(index), np.ascontiguousarray(bands.T)))
        lengths = np.concatenate([np.diff(part.offsets) for part in signatures])
        columns["offsets"] = np.concatenate([[0], np.cumsum(lengths)])
        shingles = np.concatenate([part.shingles for part in signatures])
        written.append(stored.save(folder / SHINGLES.format(index), shingles))
    for name, parts in runs.items():
        whole = units.joined(parts)
        columns[f"{name}_lengths"], columns[f"{name}_offsets"] = whole.lengths, whole.offsets
        written.append(stored.save(folder / UNITS.format(index, name), whole.hashes))
    written.append(stored.save(folder / ARRAYS.format(index), columns))
    return [{"file": output["file"], "sha": output["sha"]} for output in written]
