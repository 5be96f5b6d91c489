# SPDX-License-Identifier: Apache-2.0
"""A datasheet for a corpus, in the sections of Gebru et al. 2021, filled from a run's files."""

from pathlib import Path
from typing import Any

from llm import files

TO_FILL = "_To be completed by whoever publishes the corpus:_ "


def write(workdir: str | Path) -> Path:
    """Write `datasheet.md` into a corpus workdir from its funnel.json and manifest.

    Raises:
        DataError: the workdir holds no finished corpus.
    """
    root = Path(workdir)
    funnel = files.read_json(root / "funnel.json")
    manifest = files.read_json(root / "documents" / "manifest.json")
    target = root / "datasheet.md"
    files.write_atomic(target, render(funnel, manifest))
    return target


def render(funnel: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Return the datasheet as Markdown."""
    name = manifest["source"]
    sections = [
        f"# Datasheet: {name} corpus\n\nFilled from the run that made the corpus; what a program "
        f"cannot know is marked.\n\nContent hash `{manifest['content_hash']}`, settings "
        f"`{manifest['config_hash']}`, input `{manifest['input_hash']}`.",
        _motivation(name),
        _composition(funnel),
        _collection(funnel),
        _preprocessing(funnel),
        _uses(name),
        _distribution(funnel),
        _maintenance(manifest),
    ]
    return "\n\n".join(sections) + "\n"


def _motivation(name: str) -> str:
    if name == "pydocs":
        why = (
            "The corpus lets every stage of a language model's life run without a network: it "
            "is made of documentation that each installation already holds."
        )
    else:
        why = TO_FILL + "why the corpus was made, by whom, and who paid for it."
    return f"## Motivation\n\n{why}"


def _composition(funnel: dict[str, Any]) -> str:
    splits = [
        [name, f"{part['documents']:,}", f"{part['bytes']:,}"]
        for name, part in funnel["splits"].items()
    ]
    kinds = [[kind, f"{count:,}"] for kind, count in funnel["breakdown"]["kind"].items()]
    near = funnel["near_duplicates"]
    return "\n\n".join(
        [
            "## Composition",
            "Each instance is a document: id, text, source, licence where known, and meta.",
            markdown_table(["split", "documents", "bytes of text"], splits),
            "Documents per kind, before copies are dropped:",
            markdown_table(["kind", "documents"], kinds),
            f"Splits do not share near copies: whole components ({near['components']:,}, the "
            f"largest with {near['largest_component']:,} documents) lie on one side.",
            "Personal data found and replaced: "
            + (", ".join(f"{n:,} {kind}" for kind, n in funnel["pii"].items()) or "none")
            + ". Names of authors may remain in licence texts and documentation.",
        ]
    )


def _collection(funnel: dict[str, Any]) -> str:
    notes = funnel["notes"]
    lines = [
        "## Collection process",
        f"{funnel['documents_read']:,} documents ({funnel['bytes_read']:,} bytes of text) were "
        f"read from {notes.get('files', 0):,} files; {funnel['read_errors']:,} corrupt records "
        "were skipped.",
    ]
    if notes.get("packages"):
        lines.append("Source code was parsed, never run. Packages and versions:")
        rows = [[name, version] for name, version in notes["packages"].items()]
        lines.append(markdown_table(["package", "version"], rows))
        missing = notes.get("packages not installed") or []
        lines.append(f"Not installed and left out: {', '.join(missing) or 'none'}.")
    else:
        lines.append(TO_FILL + "where the documents come from, when, and with whose consent.")
    return "\n\n".join(lines)


def _preprocessing(funnel: dict[str, Any]) -> str:
    first = max(funnel["steps"][0]["documents"], 1)
    steps = [
        [
            row["step"],
            f"{row['documents']:,}",
            f"{row['bytes']:,}",
            f"{row['documents'] / first:.1%}",
        ]
        for row in funnel["steps"]
    ]
    reasons = [
        [reason, f"{entry['threshold']:g}", f"{entry['count']:,}"]
        for reason, entry in funnel["reasons"].items()
    ]
    parts = [
        "## Preprocessing, cleaning, labelling",
        "What was left after each step:",
        markdown_table(["step", "documents", "bytes", "of all"], steps),
        "Why documents were dropped:",
        markdown_table(["reason", "threshold", "documents"], reasons) if reasons else "None was.",
    ]
    if funnel["planted"]:
        rows = [
            [kind, str(score["planted"]), _share(score["recall"]), _share(score["precision"])]
            for kind, score in funnel["planted"].items()
        ]
        parts += [
            "Known defects were planted before cleaning and removed after being measured:",
            markdown_table(["planted", "number", "recall", "precision"], rows),
        ]
    return "\n\n".join(parts)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3f}"


def _uses(name: str) -> str:
    what = "Training, testing and comparing language models and tokenizers."
    if name == "pydocs":
        what += (
            " It is small and speaks only of Python libraries in English: a model trained on it "
            "alone knows nothing else. Validation text comes from the same packages as training "
            "text, though from other modules."
        )
    else:
        what += "\n\n" + TO_FILL + "uses that the corpus is not fit for."
    return f"## Uses\n\n{what}"


def _distribution(funnel: dict[str, Any]) -> str:
    rows = [[name, f"{count:,}"] for name, count in funnel["breakdown"]["licence"].items()]
    return (
        "## Distribution\n\nThe documents keep the licences of their sources, stored with each "
        "document where known:\n\n" + markdown_table(["licence", "documents"], rows)
    )


def _maintenance(manifest: dict[str, Any]) -> str:
    return (
        "## Maintenance\n\nThe same settings on the same input give the same bytes; the hashes "
        f"above tell whether a copy is this one. It has {len(manifest['shards'])} shards with "
        "checksums in `documents/manifest.json`.\n\n"
        + TO_FILL
        + "who answers questions, and how errors are corrected."
    )


def markdown_table(headings: list[str], rows: list[list[str]]) -> str:
    """Lay out rows as a Markdown table; bars in cells are escaped."""
    lines = ["| " + " | ".join(headings) + " |", "|" + " --- |" * len(headings)]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows]
    return "\n".join(lines)
