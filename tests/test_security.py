# SPDX-License-Identifier: Apache-2.0
"""Nothing that is read can run: no such call exists in the code, and payloads stay asleep."""

import ast
import io
import json
import re
import shutil
import struct
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import llm
from llm.core.sharding import unbox
from llm.data import sources
from llm.errors import UserError
from llm.generate import loading
from llm.models import convert, gguf
from llm.models.config import TransformerConfig
from llm.models.transformer import Transformer
from llm.text import records
from llm.tokenizers import loading as tokenizers

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("llm", "scripts", "configs", "tests", "benchmarks")
SOURCES = [ROOT / "setup.py", *(f for name in FOLDERS for f in sorted((ROOT / name).rglob("*.py")))]

# --- The code ----------------------------------------------------------------------------------

MODULES = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "jsonpickle", "dill", "joblib", "shelve"),
    *("marshal", "tarfile", "pickletools", "keras"),
}
# Builtins by bare name; methods and functions by their last name.
BUILTINS = {"eval", "exec", "compile", "__import__", "execfile"}
CALLS = {
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput"),
    *("tempfile.mktemp", "ssl._create_unverified_context", "shutil.unpack_archive"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle"),
    *("jinja2.Environment", "jinja2.Template", "jinja2.sandbox.SandboxedEnvironment"),
}
METHODS = {"extractall", "unsafe_load", "read_pickle", "run_path", "run_module"}
OPTIONS = {"shell", "allow_pickle", "trust_remote_code", "unsafe"}  # must be False where given
REQUIRED = {"weights_only", "verify"}  # must be True where given
# Where modules are imported by name, or files run: the config file and names written in the code.
IMPORTERS = {"core/config.py", "core/launch.py", "corpus/engine.py", "data/sources.py"}
IMPORTING = {"import_module", "exec_module", "spec_from_file_location", "load_module"}


def weaknesses(tree: ast.AST) -> list[str]:
    """Return what in a program could run code from data."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if _banned(alias.name)]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [n for n in names if _banned(n) or n in CALLS or n.split(".")[-1] in METHODS]
        elif isinstance(node, ast.Call):
            found += _calls(node)
    return found


def _banned(module: str) -> bool:
    return module.split(".")[0] in MODULES


def _calls(node: ast.Call) -> list[str]:
    found = []
    name = ast.unparse(node.func)
    last = name.rsplit(".", 1)[-1]
    if (isinstance(node.func, ast.Name) and name in BUILTINS) or name in CALLS or last in METHODS:
        found.append(name)
    if last == "load" and name.startswith("torch.") and "weights_only" not in ast.unparse(node):
        found.append(name)
    if name in ("np.load", "numpy.load") and len(node.args) > 2:  # the third is allow_pickle
        found.append(name)
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else "unknown"
        if keyword.arg in OPTIONS and value is not False:
            found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
        if keyword.arg in REQUIRED and value is not True:
            found.append(f"{keyword.arg}={ast.unparse(keyword.value)}")
    return found


# Makes golden numbers by running lines of the installed reference itself, where it has no function
# to call; needs that reference's own environment and is part of no run and no test.
RUNS_ITS_REFERENCE = ROOT / "tests" / "goldens" / "make_rl.py"


def test_no_code_can_run_data():
    found = {f: w for f in SOURCES if (w := weaknesses(ast.parse(f.read_text("utf-8"))))}
    assert found.pop(RUNS_ITS_REFERENCE, []) in ([], ["exec", "exec"])
    assert not found


def test_no_notebook_can_run_data():
    for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for cell in json.loads(file.read_text("utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                # Shell and magic lines are not Python.
                joined = re.sub(r"\\\n\s*", " ", "".join(cell["source"]))
                lines = joined.splitlines()
                kept = [re.sub(r"^(\s*)[!%].*", r"\1pass", line) for line in lines]
                assert not weaknesses(ast.parse("\n".join(kept))), file


def test_no_script_runs_data():
    for file in sorted(ROOT.glob("scripts/**/*.sh")):
        text = file.read_text("utf-8")
        assert not re.search(r"(^|[;&|]\s*)eval\b|\b(curl|wget)\b.*\|\s*(ba)?sh", text), file


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from marshal import loads", "import joblib.memory", "import tarfile"),
        *("eval(x)", "exec(x)", "compile(x, '', 'exec')", "__import__(x)", "os.system(x)"),
        *("subprocess.run(x, shell=True)", "subprocess.run(x, shell=y)", "np.load(x, None, True)"),
        *("np.load(x, allow_pickle=True)", "np.load(x, allow_pickle=y)", "yaml.load(x)"),
        *("torch.load(x)", "torch.load(x, weights_only=False)", "z.extractall()"),
        *("AutoModel.from_pretrained(x, trust_remote_code=True)", "jinja2.Environment()"),
        *("from os import system", "from jinja2 import Template", "requests.get(x, verify=False)"),
    ],
)
def test_the_check_finds(code):
    assert weaknesses(ast.parse(code))


def test_the_check_passes_what_is_safe():
    for safe in ("re.compile(x)", "lm.eval()", "np.load(x, allow_pickle=False)", "jit.compile()"):
        assert not weaknesses(ast.parse(safe))


def test_modules_are_imported_by_name_only_where_names_are_ours():
    users = {
        file.relative_to(ROOT / "llm").as_posix()
        for file in sorted((ROOT / "llm").rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rsplit(".", 1)[-1] in IMPORTING
    }
    assert users == IMPORTERS


# --- Payloads ----------------------------------------------------------------------------------

CONFIG = TransformerConfig(vocab_size=272, d_model=16, n_heads=2, n_layers=1, tied_embeddings=False)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Return folders of one tiny model in every form that can be opened."""
    root = tmp_path_factory.mktemp("models")
    shapes = unbox(loading.parameter_shapes(Transformer(CONFIG)))
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    lm = loading.assemble(CONFIG, params, tokenizers.load("byte"))
    lm.save(str(root / "native"), format="native")
    convert.save_hf(CONFIG, params, root / "hf")
    gguf.save(CONFIG, params, root / "gguf" / "model.gguf", tokenizer=lm.tokenizer)
    return root


@pytest.fixture
def marker(tmp_path):
    """Return a file that every payload would make."""
    place = tmp_path / "payload-ran"
    yield place
    assert not place.exists()


def pickled(marker: Path) -> bytes:
    """Return a pickle that makes the file when it is loaded, written by hand."""
    return f"cos\nsystem\n(S'touch {marker}'\ntR.".encode()


def object_array(marker: Path) -> bytes:
    """Return a .npy file of Python objects: the pickle behind NumPy's header."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled(marker)


def torch_archive(marker: Path) -> bytes:
    """Return a file in the form of torch.save."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(marker))
    return buffer.getvalue()


def python(marker: Path) -> bytes:
    return f"from pathlib import Path\nPath({str(marker)!r}).touch()\n".encode()


FORMS = {"pickle": pickled, "npy": object_array, "torch": torch_archive, "python": python}


def open_anyhow(place: Path, make=llm.load):
    try:
        return make(str(place))
    except UserError:
        return None


def test_the_payload_itself_would_run(tmp_path):
    """Show that the pickle is one, without loading it: its first opcode names os.system."""
    assert pickled(tmp_path).startswith(b"cos\nsystem\n") and pickled(tmp_path).endswith(b"tR.")


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(("hf", form) for form in FORMS),
        ("native", "pickle"),
        ("native", "npy"),
        ("gguf", "pickle"),
    ],
)
def test_payloads_in_place_of_any_file_do_not_run(kind, form, models, marker, tmp_path):
    content = FORMS[form](marker)
    names = [f.relative_to(models / kind) for f in sorted((models / kind).rglob("*"))]
    for name in [n for n in names if (models / kind / n).is_file()]:
        folder = tmp_path / "model"
        shutil.copytree(models / kind, folder)
        (folder / name).write_bytes(content)
        open_anyhow(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["native", "hf"])
def test_code_beside_a_model_does_not_run(kind, models, marker, tmp_path, monkeypatch):
    folder = tmp_path / "model"
    shutil.copytree(models / kind, folder)
    for name in ("modeling.py", "config.py", "configuration.py", "tokenization.py", "__init__.py",
                 "sitecustomize.py", "conftest.py", "jinja2.py", "safetensors.py"):  # fmt: skip
        (folder / name).write_bytes(python(marker))
    (folder / "pytorch_model.bin").write_bytes(pickled(marker))
    (folder / "rng_state.pth").write_bytes(torch_archive(marker))
    remote = {"AutoConfig": "configuration.C", "AutoModelForCausalLM": "modeling.M"}
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"auto_map": remote, "trust_remote_code": True, "custom_code": "os:system"}
    path.write_text(json.dumps(config), "utf-8")
    monkeypatch.chdir(folder)
    open_anyhow(folder)
    del config["trust_remote_code"], config["custom_code"]
    path.write_text(json.dumps(config), "utf-8")
    assert open_anyhow(folder) is not None


@pytest.mark.parametrize(
    "hostile",
    [
        {"model": {"name": "os:system"}},
        {"model": {"activation": "os:system"}},
        {"model": {"attention": "__import__('os').system('true')"}},
        {"objective": {"name": "os:system"}, "init": {"from": "x"}},
        {"quantization": {"name": "os:system"}},
    ],
)
def test_names_in_a_stored_config_import_nothing(hostile, models, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models / "native", folder)
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    for section, fields in hostile.items():
        config[section] = {**config.get(section, {}), **fields}
    path.write_text(json.dumps(config), "utf-8")
    open_anyhow(folder)  # a UserError or a model: nothing else


@pytest.mark.parametrize("form", FORMS)
def test_payloads_as_tokenizers_and_documents_do_not_run(form, marker, tmp_path):
    for name in ("tokenizer.json", "tokenizer.model", "meta.json"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(FORMS[form](marker))
        open_anyhow(folder, tokenizers.load)
    for suffix in records.SUFFIXES:
        place = tmp_path / f"a{suffix}"
        place.write_bytes(FORMS[form](marker))
        open_anyhow(place, lambda source: list(records.read_documents(source)))
        open_anyhow(place, lambda source: list(sources.read(source)))


def test_a_chat_template_from_a_model_folder_does_not_run(models, marker, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(models / "native", folder)
    call = f".__init__.__globals__['os'].system('touch {marker}')"
    attack = "".join("{{ " + name + call + " }}" for name in ("cycler", "joiner", "self", "dict"))
    meta = folder / "tokenizer" / "meta.json"
    meta.write_text(
        json.dumps({**json.loads(meta.read_text("utf-8")), "chat_template": attack}), "utf-8"
    )
    lm = llm.load(str(folder))
    assert lm.tokenizer.chat_template == attack
    with pytest.raises(UserError, match="template"):
        lm.tokenizer.apply_chat_template([{"role": "user", "content": "x"}])
