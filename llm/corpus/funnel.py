# SPDX-License-Identifier: Apache-2.0
"""Add up what every shard reported: the funnel, the reasons, and how planted truth fared."""

import hashlib
from collections import Counter
from typing import Any

import numpy as np

from llm.corpus import bias, histograms, minhash
from llm.corpus.select import (
    ADDRESS,
    CUT,
    EXACT,
    EXCESS,
    KEPT,
    NEAR,
    PLANTED,
    SPLITS,
    Corpus,
    Selection,
)

SAMPLES = 3
CLEAR = 0.85  # Jaccard similarity from which a near copy ought to be found


def build(
    settings: dict[str, Any],
    results: list[dict[str, Any]],
    corpus: Corpus,
    chosen: Selection,
    notes: dict[str, Any],
    written: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the corpus summary: a JSON-able dict with counts only, no timing."""
    splits = {
        name: {
            "documents": sum(s["count"] for s in written if s["split"] == name),
            "bytes": sum(s["bytes"] for s in written if s["split"] == name),
        }
        for name in SPLITS
    }
    steps = _steps(settings, results, corpus, chosen)
    changes = {
        "repeats": bool(chosen.cuts),
        "balance": bool((chosen.status == EXCESS).any()),
        "genders exchanged": settings["bias"]["augment"] > 0,
    }
    if any(changes.values()):
        totals = {"documents": 0, "bytes": 0}
        for split in splits.values():
            totals = {key: totals[key] + split[key] for key in totals}
        steps.append({"step": ", ".join(name for name in changes if changes[name]), **totals})
    reasons, samples = _reasons(results)
    _add_copies(reasons, corpus, chosen, settings["dedup"])
    kept = chosen.status == KEPT
    sizes = corpus.columns["size"]
    component = np.bincount(chosen.component[kept], minlength=1)
    return {
        "settings": settings,
        "notes": notes,
        "documents_read": steps[0]["documents"],
        "bytes_read": steps[0]["bytes"],
        "documents": sum(split["documents"] for split in splits.values()),
        "bytes": sum(split["bytes"] for split in splits.values()),
        "splits": splits,
        "read_errors": sum(result["read_errors"] for result in results),
        "error_examples": [e for result in results for e in result["error_examples"]][:10],
        "steps": steps,
        "reasons": _by_count(reasons),
        "samples": samples,
        "representation": bias.table(_sum(results, "representation")),
        "borderline": _borderline(results),
        "histograms": histograms.merge(result["histograms"] for result in results),
        "breakdown": _breakdown(results),
        "pii": dict(sorted(_sum(results, "pii").items())),
        "near_duplicates": {
            **chosen.stats,
            "components": int((component > 0).sum()),
            "largest_component": int(component.max()),
        },
        "sizes": _histogram(sizes[kept]),
        "planted": planted(results, corpus, chosen, settings["dedup"]["threshold"]),
    }


def _sum(results: list[dict[str, Any]], key: str) -> Counter:
    total: Counter = Counter()
    for result in results:
        total.update(result[key])
    return total


def _steps(
    settings: dict[str, Any], results: list[dict[str, Any]], corpus: Corpus, chosen: Selection
) -> list[dict[str, Any]]:
    """List what reached each step and what went on from the last one."""
    names = ["read", "normalise", *settings["filters"]["names"], "redact"]
    rows = []
    for name in names:
        counters = [result["steps"].get(name, {}) for result in results]
        rows.append(
            {
                "step": name,
                "documents": sum(c.get("documents", 0) for c in counters),
                "bytes": sum(c.get("bytes", 0) for c in counters),
            }
        )
    sizes, real = corpus.columns["size"], ~corpus.columns["planted"]
    for name, gone in (("exact copies", [ADDRESS, EXACT]), ("near copies", [ADDRESS, EXACT, NEAR])):
        left = real & ~np.isin(chosen.status, gone)
        rows.append({"step": name, "documents": int(left.sum()), "bytes": int(sizes[left].sum())})
    # A row says what the step left over: the count that reached the next step.
    after = [*rows[2:-2], None]
    table = [{"step": "read", "documents": rows[0]["documents"], "bytes": rows[0]["bytes"]}]
    for row, following in zip(rows[1:-3], after, strict=False):
        if following is not None:
            table.append({**following, "step": row["step"]})
    return table + rows[-2:]


def _reasons(
    results: list[dict[str, Any]],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[dict[str, Any]]]]:
    reasons: dict[str, dict[str, Any]] = {}
    samples: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for reason, entry in result["reasons"].items():
            if reason in reasons:
                reasons[reason]["count"] += entry["count"]
                reasons[reason]["bytes"] += entry["bytes"]
            else:
                reasons[reason] = dict(entry)
        for reason, rows in result["samples"].items():
            merged = sorted([*samples.get(reason, []), *rows], key=lambda row: row["rank"])
            samples[reason] = merged[:SAMPLES]
    return reasons, samples


def _borderline(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the kept documents nearest to each rule's threshold."""
    found: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        for reason, rows in result["borderline"].items():
            found[reason] = histograms.closest([*found.get(reason, []), *rows])
    return found


def _add_copies(
    reasons: dict[str, dict[str, Any]], corpus: Corpus, chosen: Selection, dedup: dict[str, Any]
) -> None:
    real, sizes = ~corpus.columns["planted"], corpus.columns["size"]
    fates = (
        ("same_address", "exact copies", ADDRESS, None),
        ("exact_copy", "exact copies", EXACT, 1.0),
        ("near_copy", "near copies", NEAR, dedup["threshold"]),
        ("repeats_leave_too_little", "repeats", CUT, dedup["min_left_chars"]),
        ("excess", "balance", EXCESS, None),
    )
    for name, step, status, limit in fates:
        gone = real & (chosen.status == status)
        if gone.any():
            reasons[name] = {
                "step": step,
                "count": int(gone.sum()),
                "bytes": int(sizes[gone].sum()),
                "threshold": limit,
            }


def _by_count(reasons: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    order = sorted(reasons, key=lambda reason: (-reasons[reason]["count"], reason))
    return {reason: reasons[reason] for reason in order}


def _breakdown(results: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    tables: dict[str, Counter] = {}
    for result in results:
        for name, counts in result["breakdown"].items():
            tables.setdefault(name, Counter()).update(counts)
    return {
        name: dict(sorted(c.items(), key=lambda kv: (-kv[1], kv[0]))) for name, c in tables.items()
    }


def _histogram(sizes: np.ndarray) -> list[dict[str, int]]:
    """Count documents by size, in powers of two of bytes."""
    if not len(sizes):
        return []
    powers = np.floor(np.log2(np.maximum(sizes, 1))).astype(int)
    counts = np.bincount(powers)
    first = int(powers.min())
    return [
        {"from": 2**p, "to": 2 ** (p + 1), "documents": int(counts[p])}
        for p in range(first, len(counts))
    ]


def planted(
    results: list[dict[str, Any]], corpus: Corpus, chosen: Selection, threshold: float
) -> dict[str, dict[str, Any]]:
    """Score the cleaning on what was planted: recall and precision per kind.

    A planted document that a quality filter dropped is left out. Near copies count for recall
    from a Jaccard similarity of `CLEAR`, and against precision below the dedup threshold. Spans are
    counted in words.
    """
    rows = [row for result in results for row in result["truth"]]
    where = {int(name): i for i, name in enumerate(corpus.columns["name"].tolist())}
    table: dict[str, Counter] = {}
    for row in rows:
        entry = table.setdefault(row["kind"], Counter())
        entry["planted"] += 1
        if row["outcome"] != "kept":
            entry["filtered"] += 1
            continue
        if row["kind"] in ("exact", "near"):
            _score_copy(row, entry, where, corpus, chosen, threshold)
        elif row["kind"] == "span":
            _score_span(row, entry, where, chosen)
        elif row["kind"] == "email":
            entry["positives"] += len(row["emails"])
            entry["hits"] += row["emails_hidden"]
            entry["found"] += row["emails_hidden"]
            entry["found"] += len(row["decoys"]) - row["decoys_untouched"]
            entry["right"] += row["emails_hidden"]
        elif row["kind"] == "mojibake":
            entry["positives"] += 1
            entry["hits"] += row["repaired"]
    return {
        kind: {
            **table[kind],
            "recall": _ratio(table[kind]["hits"], table[kind]["positives"]),
            "precision": _ratio(table[kind]["right"], table[kind]["found"]),
        }
        for kind in sorted(table)
    }


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _score_copy(
    row: dict[str, Any],
    entry: Counter,
    where: dict[int, int],
    corpus: Corpus,
    chosen: Selection,
    threshold: float,
) -> None:
    copy, original = where.get(_name(row["id"])), where.get(_name(row["of"]))
    if copy is None or original is None:
        entry["filtered"] += 1
        return
    similarity = 1.0
    if row["kind"] == "near":
        similarity = minhash.jaccard(corpus.shingles_of(copy), corpus.shingles_of(original))
    found = chosen.status[copy] in (EXACT, NEAR)
    if similarity >= CLEAR:
        entry["positives"] += 1
        entry["hits"] += int(found)
    elif similarity >= threshold:
        entry["between"] += 1
        entry["between_found"] += int(found)
    else:
        entry["different"] += 1
    if found and row["kind"] == "near":  # every exact copy is one: it says nothing of precision
        entry["found"] += 1
        entry["right"] += int(similarity >= threshold)


def _score_span(
    row: dict[str, Any], entry: Counter, where: dict[int, int], chosen: Selection
) -> None:
    """Count the words of a copied span that were cut, and those cut beside it."""
    copy, original = where.get(_name(row["id"])), where.get(_name(row["of"]))
    alive = copy is not None and original is not None and chosen.status[copy] == PLANTED
    if "words" not in chosen.cuts or not alive or chosen.status[original] != KEPT:
        entry["filtered"] += 1
        return
    cuts = chosen.cuts["words"]
    mine = cuts.document == copy
    first, end = row["span"]
    low, high = cuts.first[mine], cuts.end[mine]
    inside = int(np.maximum(np.minimum(high, end) - np.maximum(low, first), 0).sum())
    entry["positives"] += end - first
    entry["hits"] += inside
    entry["right"] += inside
    entry["found"] += int((high - low).sum())


def _name(identity: str) -> int:
    digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=8).digest()
    return int(np.frombuffer(digest, np.uint64)[0])
