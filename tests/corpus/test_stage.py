# SPDX-License-Identifier: Apache-2.0
"""The whole stage: outputs, splits, planted truth, restarts, and what it refuses."""

import importlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from llm import files
from llm.corpus import stage
from llm.corpus.clean import text_key
from llm.errors import ConfigError, DataError
from llm.report import datasheet
from llm.text import records

ROOT = Path(__file__).parents[2]


def config(name="tiny"):
    return importlib.import_module(f"configs.corpus.{name}").get_config()


def quiet():
    return Console(file=io.StringIO(), width=100)


def shards(workdir):
    """Return the bytes of everything that the next stage reads."""
    return {p.name: p.read_bytes() for p in sorted((Path(workdir) / "documents").iterdir())}


def own(tmp_path, texts, **fields):
    """Return a config that reads the given texts."""
    rows = "".join(json.dumps({"id": f"d{i}", "text": t, **fields}) + "\n" for i, t in
                   enumerate(texts))  # fmt: skip
    (tmp_path / "in.jsonl").write_text(rows)
    made = config("jsonl")
    made.source.path = str(tmp_path / "in.jsonl")
    made.filters.names = ("length",)
    made.engine.workers = 1
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("corpus")
    console = Console(file=io.StringIO(), width=100)
    return workdir, stage.run(config(), str(workdir), console), console.file.getvalue()


def test_documents_follow_the_contract(made):
    workdir, result, _ = made
    read = list(records.read_documents(workdir))
    assert len(read) == result["documents"] > 500
    assert len({d["id"] for d in read}) == len(read)
    for document in read:
        assert set(document) <= {"id", "text", "source", "url", "licence", "meta"}
        assert "injected" not in document["meta"]
        if document["meta"]["kind"] == "docstring":
            assert {"module", "qualname", "signature", "summary"} <= set(document["meta"])
    manifest = files.read_json(workdir / "documents" / "manifest.json")
    for shard in manifest["shards"]:
        assert files.hash_file(workdir / "documents" / shard["file"]) == shard["sha"]
    for split in ("train", "validation"):
        found = list(records.read_documents(workdir, split=split))
        assert len(found) == manifest["splits"][split]["documents"] > 0


def test_splits_share_no_module_and_no_text(made):
    workdir, _, _ = made
    sides = {}
    for split in ("train", "validation"):
        read = list(records.read_documents(workdir, split=split))
        sides[split] = (
            {d["meta"]["module"] for d in read if "module" in d["meta"]},
            {text_key(d["text"]) for d in read},
        )
    for left, right in zip(sides["train"], sides["validation"], strict=True):
        assert left and not left & right


def test_no_address_is_left(made):
    workdir, result, _ = made
    from llm.text import pii

    assert all(not list(pii.find_emails(d["text"])) for d in records.read_documents(workdir))
    assert result["pii"]["email"] > 0


def test_planted_truth_is_found(made):
    workdir, result, printed = made
    for kind in ("exact", "email", "mojibake"):
        assert result["planted"][kind]["recall"] == 1.0
    assert result["planted"]["email"]["precision"] == 1.0
    assert result["planted"]["near"]["precision"] == 1.0
    rows = [json.loads(line) for line in (workdir / "truth.jsonl").read_text().splitlines()]
    assert len(rows) == sum(score["planted"] for score in result["planted"].values())
    assert "planted exact: recall 1.000" in printed


def test_the_funnel_adds_up(made):
    _, result, printed = made
    steps = [row["documents"] for row in result["steps"]]
    assert steps == sorted(steps, reverse=True) and steps[-1] == result["documents"]
    dropped = sum(entry["count"] for entry in result["reasons"].values())
    assert steps[0] - steps[-1] == dropped
    assert len(printed.splitlines()) < 30


class Balanced(HTMLParser):
    """Check that every element that opens also closes, in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        assert not {"src", "href"} & {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_is_whole_and_self_contained(made):
    workdir, _, _ = made
    page = (workdir / "report.html").read_text()
    parser = Balanced()
    parser.feed(page)
    assert not parser.open and "script" not in parser.tags
    assert "prefers-color-scheme: dark" in page and "Planted truth" in page


def test_the_datasheet_has_every_section(made):
    workdir, result, _ = made
    text = datasheet.write(workdir).read_text()
    for heading in ("Motivation", "Composition", "Collection process", "Preprocessing", "Uses",
                    "Distribution", "Maintenance"):  # fmt: skip
        assert f"## {heading}" in text
    assert f"{result['documents_read']:,} documents" in text and "| absl |" in text


def test_a_second_run_does_nothing_and_a_damaged_shard_is_made_again(made):
    workdir, result, _ = made
    before = shards(workdir)
    console = quiet()
    again = stage.run(config(), str(workdir), console)
    assert "nothing to do" in console.file.getvalue()
    assert again["documents"] == result["documents"]
    target = workdir / "documents" / "train-00000.jsonl.gz"
    target.write_bytes(target.read_bytes()[:-1])
    stage.run(config(), str(workdir), quiet())
    assert shards(workdir) == before


def test_two_workers_write_the_same_bytes(made, tmp_path):
    two = config()
    two.engine.workers = 2
    stage.run(two, str(tmp_path), quiet())
    assert shards(tmp_path) == shards(made[0])


RUN = """
import sys
from configs.corpus import tiny
from llm.corpus import stage
if __name__ == "__main__":
    config = tiny.get_config()
    config.engine.workers = 2
    config.source.shards = 2
    stage.run(config, sys.argv[1])
"""


def test_killed_runs_continue_to_the_same_bytes(made, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    workdir = tmp_path / "work"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    delays = random.Random(0)
    kills = 0
    for attempt in range(6):
        process = subprocess.Popen([sys.executable, script, workdir], env=environment,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        try:
            process.wait(delays.uniform(0.4, 1.2) + attempt * 0.4)
            break
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
    assert kills >= 1
    (workdir / "documents").mkdir(exist_ok=True)
    for folder in (workdir, workdir / "documents"):  # as if one more had come in the midst of these
        (folder / ".tmp-half").write_bytes(b"half")
    stage.run(config(), str(workdir), quiet())
    assert shards(workdir) == shards(made[0])
    assert not list(workdir.rglob(".tmp-*"))


def test_changed_settings_make_only_what_they_touch(made, tmp_path):
    first = config()
    stage.run(first, str(tmp_path), quiet())
    clean = {p: p.stat().st_mtime_ns for p in (tmp_path / "work" / "clean").iterdir()}
    first.split.validation = 0.2
    result = stage.run(first, str(tmp_path), quiet())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "work" / "clean").iterdir()} == clean
    share = result["splits"]["validation"]["bytes"] / result["bytes"]
    assert 0.1 < share <= 0.2
    first.filters.length.min_words = 30
    assert stage.run(first, str(tmp_path), quiet())["documents"] < result["documents"]


def test_copies_are_dropped_kept_best_and_grouped(tmp_path):
    def spell(number):  # digits all look alike to the signatures
        return "".join(chr(97 + int(digit)) for digit in str(number))

    words = [f"word{spell(i)}" for i in range(200)]
    near = [*words[:100], "other", *words[101:]]
    texts = [" ".join(words), " ".join(words).upper(), " ".join([*near, "longer", "end"])]
    texts += [" ".join(f"{spell(i)}x{spell(j)}" for j in range(9)) for i in range(20)]
    made = own(tmp_path, texts)
    stage.run(made, str(tmp_path / "a"), quiet())
    kept = {d["id"] for d in records.read_documents(tmp_path / "a")}
    assert "d2" in kept and not {"d0", "d1"} & kept and len(kept) == 21
    made.dedup.keep = "first"
    stage.run(made, str(tmp_path / "a"), quiet())
    kept = {d["id"] for d in records.read_documents(tmp_path / "a")}
    assert "d0" in kept and not {"d1", "d2"} & kept
    rows = [{"id": f"d{i}", "text": t, "meta": {"quality": 0.9 if i == 1 else 0.1}}
            for i, t in enumerate(texts)]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made.dedup.keep = "best"
    stage.run(made, str(tmp_path / "b"), quiet())
    kept = {d["id"] for d in records.read_documents(tmp_path / "b")}
    assert "d1" in kept and not {"d0", "d2"} & kept
    made.dedup.keep, made.dedup.near = "first", "group"
    made.split.validation = 0.3
    stage.run(made, str(tmp_path / "a"), quiet())
    sides = [{d["id"] for d in records.read_documents(tmp_path / "a", s)}
             for s in ("train", "validation")]  # fmt: skip
    assert any({"d0", "d2"} <= side for side in sides)


def test_what_is_planted_changes_no_document(made, tmp_path):
    bare = config()
    bare.inject.rate = 0.0
    stage.run(bare, str(tmp_path), quiet())
    bare, planted = shards(tmp_path), shards(made[0])
    del bare["manifest.json"], planted["manifest.json"]  # names the config's hash
    assert bare == planted


def test_one_address_is_read_once(tmp_path):
    rows = [
        {"id": f"d{i}", "url": url, "text": f"The {name} page says something of its own."}
        for i, (name, url) in enumerate(
            [("first", "https://www.example.org/a/"), ("second and longer", "http://example.org/a#b"),
             ("third", "https://example.org:443/a"), ("fourth", "https://example.org/a?b=1"),
             ("fifth", "http://example.org/A"), ("sixth", ""), ("seventh", "")]
        )
    ]  # fmt: skip
    made = own(tmp_path, ["x"])
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.dedup.url = True
    result = stage.run(made, str(tmp_path / "a"), quiet())
    found = {d["id"] for d in records.read_documents(tmp_path / "a")}
    assert found == {"d1", "d3", "d4", "d5", "d6"}
    assert result["reasons"]["same_address"]["count"] == 2


def test_repeated_runs_stay_once(tmp_path):
    rng = random.Random(0)

    def prose(count):
        return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(count))

    licence = prose(80)
    texts = [f"{prose(300)}\n\n{licence}\n\n{prose(20)}" for _ in range(40)]
    texts.append(f"{licence} {prose(3)}")  # nothing much is left of it
    made = own(tmp_path, texts)
    made.dedup.repeats.words = 50
    made.inject.kinds, made.inject.rate = ("span",), 0.5
    result = stage.run(made, str(tmp_path / "a"), quiet())
    found = [d["text"] for d in records.read_documents(tmp_path / "a")]
    assert sum(licence in text for text in found) == 1 and len(found) == 40
    whole = set(texts)
    assert sum(text in whole for text in found) == 1
    for text in found:
        assert text in whole or text.count("\n\n") == 1
    assert result["reasons"]["repeats_leave_too_little"]["count"] == 1
    assert result["steps"][-1]["bytes"] == sum(len(t.encode()) for t in found)
    score = result["planted"]["span"]
    assert score["positives"] > 500 and score["recall"] == score["precision"] == 1.0
    made.dedup.repeats = {"words": 50, "page": 1}
    with pytest.raises(ConfigError, match=r"unit of dedup\.repeats"):
        stage.run(made, str(tmp_path / "a"), quiet())


def test_a_new_corpus_leaves_out_what_an_earlier_one_has(tmp_path):
    rng = random.Random(1)

    def prose(count):
        return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(count))

    old = [prose(100) for _ in range(30)]
    made = own(tmp_path, old)
    made.dedup.repeats.words = 40
    stage.run(made, str(tmp_path / "first"), quiet())
    span = " ".join(old[3].split()[10:60])
    new = [old[0], old[1].upper(), f"{old[2]} more", f"{prose(60)} {span} {prose(20)}"]
    fresh = [prose(100) for _ in range(10)]
    rows = "".join(json.dumps({"id": f"n{i}", "text": t}) + "\n" for i, t in
                   enumerate([*new, *fresh]))  # fmt: skip
    (tmp_path / "in.jsonl").write_text(rows)
    made.dedup.against = (str(tmp_path / "first"),)
    result = stage.run(made, str(tmp_path / "second"), quiet())
    found = {d["id"]: d["text"] for d in records.read_documents(tmp_path / "second")}
    assert set(found) == {f"n{i}" for i in range(3, 14)}
    assert span not in found["n3"] and len(found["n3"].split()) == 80
    assert result["near_duplicates"]["of_earlier"] == 3
    assert "nothing to do" in _said(made, tmp_path / "second")
    made.dedup.n_gram = 4
    with pytest.raises(DataError, match=r"another dedup\.n_gram"):
        stage.run(made, str(tmp_path / "third"), quiet())
    made.dedup.against = (str(tmp_path / "none"),)
    with pytest.raises(DataError, match="no finished corpus"):
        stage.run(made, str(tmp_path / "third"), quiet())


def _said(made, workdir):
    console = quiet()
    stage.run(made, str(workdir), console)
    return console.file.getvalue()


def test_corrupt_records_are_counted_in_the_report(tmp_path):
    made = own(tmp_path, [f"A fine document with number {i} in it." for i in range(40)])
    with (tmp_path / "in.jsonl").open("ab") as file:
        file.write(b"{broken\n")
    result = stage.run(made, str(tmp_path / "a"), quiet())
    assert result["read_errors"] == 1
    assert "in.jsonl:41" in (tmp_path / "a" / "report.html").read_text()


def test_what_cannot_work_is_refused(tmp_path):
    def refused(change, error, words):
        bad = config()
        change(bad)
        with pytest.raises(error, match=words):
            stage.run(bad, str(tmp_path / "x"), quiet())

    refused(lambda c: c.source.update(name="pydoc"), ConfigError, "Did you mean 'pydocs'")
    refused(lambda c: c.filters.update(names=("fine_web",)), ConfigError, "Did you mean 'fineweb'")
    refused(lambda c: c.dedup.update(near="dorp"), ConfigError, "Did you mean 'drop'")
    refused(lambda c: c.pii.update(types=("mail",)), ConfigError, "Did you mean 'email'")
    refused(lambda c: c.inject.update(kinds=("exakt",)), ConfigError, "Did you mean 'exact'")
    refused(lambda c: c.split.update(validation=1.5), ConfigError, "split.validation")
    refused(lambda c: c.engine.update(workers=0), ConfigError, "workers")
    refused(lambda c: c.filters.length.update(min_words=10**9), DataError, "dropped every")
    with pytest.raises(ConfigError, match="Did you mean 'dedup'"):
        stage.run({"dedupe": {}}, str(tmp_path / "x"), quiet())
    with pytest.raises(ConfigError, match="Did you mean 'max_documents'"):
        stage.run({"source": {"max_document": 1}}, str(tmp_path / "x"), quiet())
    with pytest.raises(ConfigError, match="local folder"):
        stage.run(config(), "gs://bucket/x", quiet())
    missing = config("jsonl")
    with pytest.raises(ConfigError, match=r"source\.path is empty"):
        stage.run(missing, str(tmp_path / "x"), quiet())
    missing.source.path = str(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="No documents"):
        stage.run(missing, str(tmp_path / "x"), quiet())
    (tmp_path / "empty.jsonl").write_text("")
    missing.source.path = str(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="gave no document"):
        stage.run(missing, str(tmp_path / "x"), quiet())


def test_every_config_resolves_and_states_its_command():
    for name in ("tiny", "pydocs", "jsonl"):
        resolved = stage.resolve(config(name))
        assert set(resolved) == set(stage.SECTIONS)
        header = (ROOT / "configs" / "corpus" / f"{name}.py").read_text()
        for line in ("Command:", "Hardware:", "Cost:", "Expect:"):
            assert line in header


def test_the_stage_imports_nothing_heavy():
    code = (
        "import sys, llm.corpus.stage, llm.report.datasheet, llm.text.ngrams, llm.corpus.clean\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'seqio', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert time.perf_counter() - start < 20
