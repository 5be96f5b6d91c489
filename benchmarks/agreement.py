# SPDX-License-Identifier: Apache-2.0
"""Compare our filters with datatrove's: decisions on the same texts, and CPU time in the same run.

Command:  python benchmarks/agreement.py --datatrove=ENV/bin/python [--more 'FILES' …]

Texts are docstrings, licence files and package metadata of this installation; --more adds documents
(JSONL, text), and --pages a folder of HTML pages, of which the text is extracted first.
"""

import argparse
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from llm.corpus import filters, html, pydocs
from llm.text.records import read_documents

CHAIN = ("gopher_repetition", "gopher_quality", "c4_paper", "fineweb")
PACKAGES = ["python", "numpy", "scipy", "jax", "optax", "flax"]
BATCH = 256


def texts(more: list[str], pages: str) -> list[str]:
    """Return long docstrings, licences, metadata and what else is given."""
    kinds = ["docstring", "licence", "metadata"]
    entries, _ = pydocs.list_files(PACKAGES, kinds)
    found = [d["text"] for entry in entries for d in pydocs.read_file(entry, kinds)]
    found = [text for text in found if len(text.split()) >= 50]
    for place in more:
        for document in read_documents(place):
            text = document["text"]
            found += [text[i : i + 5000] for i in range(0, len(text), 5000)]
    for page in sorted(Path(pages).glob("*.html*")) if pages else ():
        data = page.read_bytes()
        found.append(html.extract_text(_unpacked(data), "quality"))
    return found


def _unpacked(data: bytes) -> bytes:
    import gzip

    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data


def documents(given: list[str]) -> list[list[dict[str, Any]]]:
    """Return fresh documents in batches."""
    made = [{"id": str(i), "text": t, "source": "b", "meta": {}} for i, t in enumerate(given)]
    return [made[i : i + BATCH] for i in range(0, len(made), BATCH)]


def kept(given: list[str], names: tuple[str, ...]) -> list[bool]:
    """Return which texts a chain of filters keeps."""
    bound = filters.build(names)
    ids: set[str] = set()
    for batch in documents(given):
        for _, function in bound:
            batch, _ = filters.apply(function, batch)
        ids |= {document["id"] for document in batch}
    return [str(i) in ids for i in range(len(given))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--datatrove", required=True, help="python of an environment with it")
    parser.add_argument("--more", nargs="*", default=[])
    parser.add_argument("--pages", default="")
    options = parser.parse_args()
    given = texts(options.more, options.pages)
    size = sum(len(text.encode()) for text in given) / 1e6
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "texts.jsonl", Path(folder) / "decisions.json"
        source.write_text("".join(json.dumps({"text": t}) + "\n" for t in given), "utf-8")
        peer = Path(__file__).parent / "peers" / "datatrove_filters.py"
        subprocess.run([options.datatrove, str(peer), str(source), str(target)], check=True)
        theirs = json.loads(target.read_text("utf-8"))
    rounds = []
    for _ in range(3):
        start = time.process_time()
        chain = kept(given, CHAIN)
        rounds.append(time.process_time() - start)
    print(f"{len(given):,} documents, {size:.2f} MB")
    for name in CHAIN:
        ours, other = kept(given, (name,)), theirs["decisions"][name]
        same = sum(a == b for a, b in zip(ours, other, strict=True)) / len(given)
        split = theirs["our_splitting"][name]
        alike = sum(a == b for a, b in zip(ours, split, strict=True)) / len(given)
        only = sum(a and not b for a, b in zip(ours, other, strict=True))
        print(f"{name:20} agree {same:.4f} (with our splitting {alike:.4f}); kept only here "
              f"{only}, ours {sum(ours)} kept, theirs {sum(other)}")  # fmt: skip
    same = sum(a == b for a, b in zip(chain, theirs["chain"], strict=True)) / len(given)
    seconds = sorted(rounds)[1]
    print(f"{'chain':20} agree {same:.4f}; kept {sum(chain)} here, {sum(theirs['chain'])} there")
    print(f"chain: {size / seconds:.2f} MB/s here, {size / theirs['seconds']:.3f} MB/s there: "
          f"{theirs['seconds'] / seconds:.1f} times as fast")  # fmt: skip


if __name__ == "__main__":
    main()
