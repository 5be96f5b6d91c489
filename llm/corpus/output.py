# SPDX-License-Identifier: Apache-2.0
"""Write the chosen documents as the shards and the manifest that the next stages read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm import files
from llm.corpus import bias, minhash, units
from llm.corpus.clean import DOCUMENTS, EXCERPT, measured
from llm.corpus.select import KEPT, NEAR, SPLITS, Corpus, Selection
from llm.errors import DataError
from llm.text import pii, records

SELECTION = "selection.npz"


def plan(
    selection: Selection, sizes: np.ndarray, starts: np.ndarray, shard_bytes: int
) -> list[dict[str, Any]]:
    """Group cleaned shards into output shards of about `shard_bytes` of text per split."""
    tasks: list[dict[str, Any]] = []
    for split_index, split in enumerate(SPLITS):
        chosen = (selection.status == KEPT) & (selection.split == split_index)
        group: list[int] = []
        filled = number = 0
        for shard in range(len(starts) - 1):
            part = slice(starts[shard], starts[shard + 1])
            size = int(sizes[part][chosen[part]].sum())
            if not size:
                continue
            group.append(shard)
            filled += size
            if filled >= shard_bytes:
                tasks.append({"split": split, "number": number, "shards": group})
                group, filled, number = [], 0, number + 1
        if group:
            tasks.append({"split": split, "number": number, "shards": group})
    return [{"index": index, **task} for index, task in enumerate(tasks)]


def save_selection(folder: Path, selection: Selection, starts: np.ndarray) -> str:
    """Store what the writers need and return its hash."""
    arrays = {"status": selection.status, "split": selection.split, "starts": starts}
    for unit, cuts in selection.cuts.items():
        arrays[f"cut_{unit}"] = np.stack(cuts)
    folder.mkdir(parents=True, exist_ok=True)
    digest = files.hash_json({name: files.hash_bytes(a.tobytes()) for name, a in arrays.items()})
    temporary = folder / f".tmp-{SELECTION}"
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(folder / SELECTION)
    return digest


def write_split(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write one output shard from the cleaned shards that feed it."""
    work, split = folder.parent, SPLITS.index(task["split"])
    with np.load(folder / SELECTION) as stored:
        status, splits, starts = stored["status"], stored["split"], stored["starts"]
        cuts = {name[4:]: stored[name] for name in stored.files if name.startswith("cut_")}
    documents: list[dict[str, Any]] = []
    for shard in task["shards"]:
        part = slice(starts[shard], starts[shard + 1])
        chosen = ((status[part] == KEPT) & (splits[part] == split)).tolist()
        read = _documents(work / "clean" / DOCUMENTS.format(shard))
        gone = cuts_of(cuts, starts[shard], starts[shard + 1])
        for place, (document, keep) in enumerate(zip(read, chosen, strict=True)):
            if keep:
                if place in gone:
                    document["text"] = units.without(document["text"], gone[place])
                documents.append(document)
                if split == 0:  # held-out text stays as it was written
                    documents += bias.counterfactuals(document, task["augment"], task["seed"])
    name = f"{task['split']}-{task['number']:05d}.jsonl.gz"
    written = records.write_shard(work.parent / "documents" / name, documents)
    return {
        "files": [{"file": f"../../documents/{name}", "sha": written["sha"]}],
        "documents": written["count"],
        "bytes": written["bytes"],
        "shard": {**written, "split": task["split"]},
    }


def cuts_of(
    cuts: Mapping[str, np.ndarray], start: int, end: int
) -> dict[int, list[tuple[str, int, int]]]:
    """Return what goes from documents start … end-1: place -> (unit, first, end)."""
    found: dict[int, list[tuple[str, int, int]]] = {}
    for unit, rows in cuts.items():
        low, high = np.searchsorted(rows[0], [start, end])
        for document, first, last in rows[:, low:high].T.tolist():
            found.setdefault(document - start, []).append((unit, first, last))
    return found


def kept(workdir: str) -> tuple[Path, int, np.ndarray]:
    """Return an earlier corpus as `select.load` takes it: its folder, shards and kept documents."""
    work = Path(workdir) / "work"
    with np.load(work / "write" / SELECTION) as stored:
        return work / "clean", len(stored["starts"]) - 1, stored["status"] == KEPT


def hashes(dedup: Mapping[str, Any], signing: Mapping[str, Any]) -> dict[str, str]:
    """Return the content of the earlier corpora to compare with, for fingerprints.

    Raises:
        DataError: one is not there, lacks its working files, or was signed in another way.
    """
    found = {}
    for workdir in dedup["against"]:
        root = Path(workdir)
        manifest, table = root / "documents" / "manifest.json", root / "funnel.json"
        if not all(p.exists() for p in (manifest, table, root / "work" / "write" / SELECTION)):
            raise DataError(
                f"{workdir} holds no finished corpus with its work/ folder.",
                "Name workdirs of scripts/corpus.py in --config.dedup.against.",
            )
        other = files.read_json(table)["settings"]["dedup"]
        differ = [k for k in ("bands", "rows", "n_gram") if other[k] != dedup[k]]
        differ += ["near"] * (signing["signed"] and other["near"] == "off")
        differ += [f"repeats.{u}" for u in measured(dedup) if not other["repeats"].get(u)]
        if differ:
            raise DataError(
                f"{workdir} was made with another dedup.{differ[0]}: it cannot be compared with.",
                "Use the same settings, or make that corpus again.",
            )
        found[f"against.{workdir}"] = files.read_json(manifest)["content_hash"]
    return found


def examples(
    work: Path, corpus: Corpus, selection: Selection, limit: int = 4
) -> list[dict[str, Any]]:
    """Return a few near copies beside the documents that were kept in their place."""
    real = ~corpus.columns["planted"]
    copies = np.flatnonzero(real & (selection.status == NEAR))
    copies = copies[selection.keeper[copies] < len(real)]  # others are copies of earlier corpora
    copies = copies[real[selection.keeper[copies]]]
    copies = copies[np.argsort(corpus.columns["name"][copies])][:limit]
    loaded: dict[int, list[dict[str, Any]]] = {}

    def document(index: int) -> dict[str, Any]:
        shard = int(np.searchsorted(corpus.starts, index, side="right")) - 1
        if shard not in loaded:
            loaded[shard] = _documents(work / "clean" / DOCUMENTS.format(shard))
        return loaded[shard][index - int(corpus.starts[shard])]

    pairs = []
    for index in copies.tolist():
        other = int(selection.keeper[index])
        similarity = minhash.jaccard(corpus.shingles_of(index), corpus.shingles_of(other))
        pair: dict[str, Any] = {"similarity": round(similarity, 4)}
        for name, one in (("dropped", index), ("kept", other)):
            found = document(one)
            masked, _ = pii.redact(found["text"][:EXCERPT], pii.available())
            pair[name] = {"id": found["id"], "text": masked}
        pairs.append(pair)
    return pairs


def _documents(shard: Path) -> list[dict[str, Any]]:
    return list(records.read_documents(shard, max_error_rate=0.0))


def write_manifest(folder: Path, shards: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write `manifest.json` last, and remove shards of earlier runs that it does not name."""
    named = {shard["file"] for shard in shards}
    for old in folder.glob("*.jsonl.gz"):
        if old.name not in named:
            old.unlink()
    splits = {
        split: {
            "documents": sum(s["count"] for s in shards if s["split"] == split),
            "bytes": sum(s["bytes"] for s in shards if s["split"] == split),
        }
        for split in SPLITS
    }
    content = files.hash_json([[s["split"], s["content"]] for s in shards])
    files.write_json(
        folder / "manifest.json",
        {"format": 1, **facts, "content_hash": content, "splits": splits, "shards": shards},
    )
