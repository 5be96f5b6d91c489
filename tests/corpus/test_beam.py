# SPDX-License-Identifier: Apache-2.0
"""Apache Beam against the local engine: the same bytes, and copies found through GroupByKey.

Beam needs an older protobuf than the rest of the tested versions, so it lives in an environment of
its own: BEAM_PYTHON names its interpreter. Where this environment has Beam, it is used.
"""

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from llm.errors import ConfigError

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("BEAM_PYTHON") or (
    sys.executable if importlib.util.find_spec("apache_beam") else ""
)
needs_beam = pytest.mark.skipif(
    not PYTHON, reason="Apache Beam lives in an environment of its own: set BEAM_PYTHON"
)

RUN = """
import sys
from configs.corpus import jsonl
from llm.corpus import stage
if __name__ == "__main__":
    source, workdir, config = sys.argv[1], sys.argv[2], jsonl.get_config()
    config.source.path = source
    config.filters.names = ("length",)
    config.dedup.repeats.words = 20
    config.split.validation = 0.1
    config.engine.name, config.engine.options = sys.argv[3], tuple(sys.argv[4:])
    stage.run(config, workdir)
    heavy = {"jax", "flax", "tensorflow", "seqio"} & set(sys.modules)
    assert not heavy, heavy
"""


def write(folder, count, parts, seed=0):
    """Write documents with exact, near, chained and spliced copies among them."""
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijkl", k=5)) for _ in range(4000)]
    texts = []
    for number in range(count):
        text = [rng.choice(words) for _ in range(rng.randint(30, 90))]
        if texts and number % 3 == 0:
            text = list(rng.choice(texts))
            if rng.random() < 0.7:
                text[rng.randrange(len(text))] = "other"
            if rng.random() < 0.3:
                text += [rng.choice(words) for _ in range(3)]
        elif texts and number % 7 == 0:
            text[10:10] = rng.choice(texts)[:25]
        texts.append(text)
    folder.mkdir()
    for part in range(parts):
        rows = (json.dumps({"id": f"d{i}", "text": " ".join(texts[i])}) + "\n"
                for i in range(part, count, parts))  # fmt: skip
        (folder / f"{part:02d}.jsonl").write_text("".join(rows))
    return str(folder / "*.jsonl")


def run(python, script, *arguments, **more):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [python, script, *map(str, arguments)],
        env=environment, capture_output=True, text=True, **more,
    )  # fmt: skip


def output(workdir):
    return {p.name: p.read_bytes() for p in sorted((workdir / "documents").iterdir())}


def compare(tmp_path, count, parts, *options):
    """Run both engines and return the local engine's funnel."""
    source = write(tmp_path / "in", count, parts)
    script = tmp_path / "run.py"
    script.write_text(RUN)
    for python, name, extra in ((sys.executable, "local", ()), (PYTHON, "beam", options)):
        done = run(python, script, source, tmp_path / name, name, *extra)
        assert done.returncode == 0, done.stderr[-2000:]
    assert output(tmp_path / "local") == output(tmp_path / "beam")
    funnels = [json.loads((tmp_path / n / "funnel.json").read_text()) for n in ("local", "beam")]
    assert funnels[0]["near_duplicates"] == funnels[1]["near_duplicates"]
    assert funnels[0]["reasons"] == funnels[1]["reasons"]
    return funnels[0]


@needs_beam
def test_beam_writes_the_same_bytes(tmp_path):
    funnel = compare(tmp_path, 900, 3)
    assert funnel["near_duplicates"]["verified"] > 100
    assert funnel["reasons"]["exact_copy"]["count"] > 50
    # What Beam began, the local engine ends, and the other way round.
    for name, other in (("beam", "local"), ("local", "beam")):
        workdir = tmp_path / name
        before = output(workdir)
        (workdir / "documents" / "manifest.json").unlink()
        (workdir / "work" / "clean" / "00001.json").unlink()
        (workdir / "work" / "write" / "00000.json").unlink()
        python = PYTHON if other == "beam" else sys.executable
        done = run(python, tmp_path / "run.py", tmp_path / "in" / "*.jsonl", workdir, other)
        assert done.returncode == 0, done.stderr[-2000:]
        assert output(workdir) == before


@needs_beam
def test_an_error_in_a_beam_worker_is_told_as_elsewhere(tmp_path):
    source = write(tmp_path / "in", 50, 2)
    (tmp_path / "in" / "01.jsonl").write_text("{broken\n" * 60)
    (tmp_path / "run.py").write_text(RUN)
    done = run(PYTHON, tmp_path / "run.py", source, tmp_path / "out", "beam")
    assert done.returncode != 0 and "DataError" in done.stderr and "01.jsonl" in done.stderr


@needs_beam
@pytest.mark.slow
def test_beam_groups_a_hundred_thousand_documents(tmp_path):
    funnel = compare(tmp_path, 100_000, 8)
    assert funnel["documents_read"] == 100_000
    assert funnel["near_duplicates"]["verified"] > 10_000


@pytest.mark.skipif(bool(importlib.util.find_spec("apache_beam")), reason="Beam is installed here")
def test_without_beam_the_engine_is_refused(tmp_path):
    import importlib

    from llm.corpus import stage

    config = importlib.import_module("configs.corpus.tiny").get_config()
    config.engine.name = "beam"
    with pytest.raises(ConfigError, match="needs Apache Beam"):
        stage.run(config, str(tmp_path))
