# SPDX-License-Identifier: Apache-2.0
"""The architecture as tests: who may import whom, and how long a file may be."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = sorted((ROOT / "llm").rglob("*.py"))
LEVELS = (
    ("errors",),
    ("files",),
    ("core", "text"),
    ("tokenizers", "models"),
    ("data", "generate"),
    ("train",),
    ("corpus", "pretrain", "posttrain", "eval", "compress", "serve", "report", "plan", "label"),
    ("startup",),
    ("main",),
)
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}
WITHOUT_JAX = ("text", "tokenizers", "corpus", "report", "label")
HEAVY = ("jax", "jaxlib", "flax", "optax", "orbax", "tensorflow", "seqio")


def _package(file: Path) -> str:
    return file.relative_to(ROOT / "llm").parts[0].removesuffix(".py")


def _imports(tree: ast.AST) -> set[str]:
    """Return dotted names; `from llm.core import config` gives llm.core.config."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(package: str, imports: set[str]) -> list[str]:
    """Return the imports that break the layers or the no-JAX rule."""
    wrong = []
    for name in sorted(imports):
        parts = name.split(".")
        if parts[0] == "llm" and package != "__init__" and len(parts) > 1 and parts[1] in LEVEL:
            other = parts[1]
            if other != package and LEVEL[other] >= LEVEL[package]:
                wrong.append(name)
        if parts[0] in HEAVY and package in WITHOUT_JAX:
            wrong.append(name)
    return wrong


def test_layers():
    for file in LIBRARY:
        imports = _imports(ast.parse(file.read_text(encoding="utf-8")))
        assert not violations(_package(file), imports), file


def test_layers_would_catch_a_sideways_import():
    assert violations("corpus", {"llm.eval.stage.run"}) == ["llm.eval.stage.run"]
    assert violations("text", {"jax.numpy"}) == ["jax.numpy"]
    assert violations("core", {"llm.models.config.TransformerConfig"})
    assert not violations("train", {"llm.data.feed.Feed", "jax"})


def test_file_length():
    long = {str(f): n for f in LIBRARY if (n := f.read_text("utf-8").count("\n")) > 500}
    assert not long


def test_partition_specs_live_in_one_file():
    users = {
        _package(file) + "/" + file.name
        for file in LIBRARY
        if "PartitionSpec" in file.read_text(encoding="utf-8")
    }
    assert users == {"core/sharding.py"}


@pytest.mark.parametrize("banned", ["flax.training.checkpoints", "clu"])
def test_banned_imports(banned):
    for file in LIBRARY:
        imports = _imports(ast.parse(file.read_text(encoding="utf-8")))
        assert not {n for n in imports if n == banned or n.startswith(banned + ".")}, file


def _modules_after(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint('MODULES', json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    line = next(s for s in done.stdout.splitlines() if s.startswith("MODULES "))
    return {name.split(".")[0] for name in json.loads(line.removeprefix("MODULES "))}


def test_packages_without_jax():
    modules = [
        ".".join(f.relative_to(ROOT).with_suffix("").parts)
        for f in LIBRARY
        if _package(f) in WITHOUT_JAX and f.name != "__init__.py"
    ]
    loaded = _modules_after("\n".join(f"import {m}" for m in modules))
    assert not loaded & set(HEAVY)


def test_bare_import_and_config_reading_are_light():
    assert not _modules_after("import llm") & {*HEAVY, "numpy", "ml_collections"}
    loaded = _modules_after("import llm.core.launch, llm.core.config, llm.main")
    assert not loaded & {*HEAVY, "numpy"}


def test_training_never_imports_tensorflow(tmp_path):
    words = ("alpha", "beta", "gamma", "delta")
    lines = [
        json.dumps(
            {"id": str(i), "text": f"{i} " + " ".join(words[(i + j) % 4] for j in range(60))}
        )
        for i in range(300)
    ]
    (tmp_path / "docs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    options = [
        "--config=configs/pretrain/tiny.py",
        f"--config.data.path={tmp_path}/docs.jsonl",
        "--config.data.length=32",
        "--config.train.steps=20",
        "--config.train.batch_size=8",
        f"--workdir={tmp_path}/run",
        "--debug",
    ]
    loaded = _modules_after(
        f"from llm.core import launch\nassert launch.main('pretrain', {options!r}, {{}}) == 0"
    )
    assert not loaded & {"tensorflow", "seqio", "torch", "keras"}
