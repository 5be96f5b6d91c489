# SPDX-License-Identifier: Apache-2.0
"""Measure every family against the golden numbers of Hugging Face, without Hugging Face.

    python tests/goldens/parity.py FOLDER

exports every case to FOLDER/<case> and writes hf_parity.json: the largest differences of logits
(plain, padded, packed, decoded with a cache), the relative error of three tensors' gradients, and
the hash of the exported files. `make_hf.py --exports FOLDER`, run where transformers is installed,
adds how far the exported model is from the original there.
"""

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

sys.path.insert(0, str(Path(__file__).parent))
import hf_cases

from llm.models import convert
from llm.models.cache import init_cache
from llm.models.transformer import Transformer

HERE = Path(__file__).parent
FIGURES = HERE / "hf_parity.json"
ROW = 24  # two documents fit one row
SHARD = 20_000  # bytes per file of the sharded exports
PREFILL = 5  # tokens read at once before decoding goes on one by one

Arrays = dict[str, np.ndarray]


def golden(name: str) -> tuple[np.ndarray, dict[str, Any], Arrays]:
    """Return a case's logits, what is known about it, and its three gradients by tensor name."""
    with np.load(HERE / "hf" / f"{name}.npz") as file:
        found = {k.split(" ", 1)[1]: file[k] for k in file.files if k.startswith("gradient ")}
        return file["logits"], json.loads(str(file["about"])), found


def write_folder(name: str, folder: Path) -> Path:
    """Write the Hugging Face folder that a case stands for."""
    about = golden(name)[1]
    arrays = {key: hf_cases.seeded(key, tuple(shape)) for key, shape in about["shapes"].items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(about["config"]))
    return folder


def _rows(documents: list[np.ndarray]) -> Arrays:
    """Lay documents out three ways: alone with padding (two rows), and packed in one row."""
    tokens = np.zeros((3, ROW), np.int32)
    segments, positions = np.zeros_like(tokens), np.tile(np.arange(ROW, dtype=np.int32), (3, 1))
    start = 0
    for row, document in enumerate(documents):
        size = len(document)
        tokens[row, :size], segments[row, :size] = document, 1
        packed = slice(start, start + size)
        tokens[2, packed], segments[2, packed] = document, row + 1
        positions[2, packed] = np.arange(size)
        start += size
    return {"tokens": tokens, "segments": segments, "positions": positions}


def _with_prefix(rows: Arrays) -> Arrays:
    return {f"encoder_{key}": value for key, value in rows.items()}


def _padded_and_packed(both: bool) -> Arrays:
    ids = hf_cases.tokens()
    inputs = _rows([ids[row, :length] for row, length in enumerate(hf_cases.LENGTHS)])
    if both:
        return {**_rows(list(hf_cases.decoder_tokens())), **_with_prefix(inputs)}
    return inputs


def _decode(model: Any, params: Any, both: bool) -> jax.Array:
    """Read PREFILL tokens at once and the others one by one; [B, T, V]."""
    c, B, T = model.config, hf_cases.B, hf_cases.T
    variables = {"params": params}
    segments = jnp.asarray(hf_cases.mask())
    cache = init_cache(c, B, T + 2, encoder_length=T)
    tokens, first = jnp.asarray(hf_cases.tokens(), jnp.int32), {}
    if both:
        encoded = model.apply(variables, tokens, segments, method="encode")
        first = {"encoded": encoded, "encoder_segments": segments}
        tokens, segments = (
            jnp.asarray(hf_cases.decoder_tokens(), jnp.int32),
            jnp.ones_like(segments),
        )
    start, cache = model.apply(
        variables, tokens[:, :PREFILL], segments=segments[:, :PREFILL], cache=cache, **first
    )

    def one(cache: Any, step: tuple[jax.Array, jax.Array]) -> tuple[Any, jax.Array]:
        token, segment = step
        logits, cache = model.apply(
            variables, token[:, None], segments=segment[:, None], cache=cache
        )
        return cache, logits[:, 0]

    _, rest = jax.lax.scan(one, cache, (tokens[:, PREFILL:].T, segments[:, PREFILL:].T))
    return jnp.concatenate([start, jnp.moveaxis(rest, 0, 1)], axis=1)


def _program(model: Any, both: bool, causal: bool) -> Callable[[Any], Any]:
    """Everything that is measured, as one function of the parameters: it compiles once."""
    inputs = _padded_and_packed(both)
    weights = np.zeros((3, ROW, hf_cases.V), np.float32)
    weights[:2, : hf_cases.T] = hf_cases.loss_weights()
    alone = {"tokens": hf_cases.tokens()[:1]}
    if both:
        alone = {"tokens": hf_cases.decoder_tokens()[:1], **_with_prefix(alone)}

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        logits = model.apply({"params": params}, **inputs)
        return jnp.sum(logits * weights), logits

    def run(params: Any) -> Any:
        (_, logits), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        plain = model.apply({"params": params}, **alone)
        return logits, gradients, plain, _decode(model, params, both) if causal else None

    return run


def measure(name: str, folder: Path, jit: Callable[..., Any] = jax.jit) -> dict[str, Any]:
    """Return a case's figures; `dots` are (tensor, measured, golden) of every tensor's gradient."""
    expected, about, whole = golden(name)
    c, params = convert.load_hf(folder)
    both = c.architecture == "encoder_decoder"
    run = jit(_program(Transformer(c), both, c.causal))
    logits, gradients, plain, decoded = run(params)
    sizes = [hf_cases.T] * 2 if both else list(hf_cases.LENGTHS)
    starts = [0, sizes[0]]

    def furthest(got: list[Any]) -> float:
        """Compare two documents' logits with the golden ones, at every real position."""
        pairs = zip(got, expected, sizes, strict=False)
        return max(float(np.abs(g[:n] - want[:n]).max()) for g, want, n in pairs)

    figures: dict[str, Any] = {
        "plain": furthest([plain[0]]),
        "padded": furthest([logits[0], logits[1]]),
        "packed": furthest([logits[2, at:] for at in starts]),
        "decode": None if decoded is None else furthest(list(decoded)),
    }
    made = convert.export_entries(c, gradients, about["config"]["model_type"])
    errors = []
    for key, want in whole.items():
        got = np.asarray(made[key].make(), np.float64)
        errors.append(float(np.linalg.norm(got - want) / np.linalg.norm(want)))
    figures["gradient"] = max(errors)
    figures["dots"] = []
    for key, want in about["gradients"].items():
        if key in made:
            direction = hf_cases.seeded("direction " + key, made[key].shape)
            figures["dots"].append((key, float(np.vdot(made[key].make(), direction)), want))
    return figures


def table_row(name: str, figures: dict[str, Any]) -> str:
    """Return a case's line of the table in docs/models.md."""
    keys = ("plain", "padded", "packed", "decode", "gradient", "export")
    cells = ["–" if (x := figures[key]) is None else f"{x:.1e}" if x else "0" for key in keys]
    return f"| {hf_cases.TITLES[name]} | {' | '.join(cells)} |"


def export(source: Path, target: Path, shard: int = convert.SHARD_BYTES) -> None:
    """Read a folder and write it again as the same family, in files of at most `shard` bytes."""
    c, params = convert.load_hf(source)
    kind = json.loads((source / "config.json").read_text())["model_type"]
    convert.save_hf(c, params, target, family=kind, shard=shard)


def export_hash(folder: Path) -> str:
    """Return the SHA-256 of an exported folder's config.json and weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def main(folder: Path) -> None:
    """Export and measure every case."""
    table = {}
    for name in hf_cases.CASES:
        source = write_folder(name, folder / "originals" / name)
        figures = measure(name, source)
        del figures["dots"]
        export(source, folder / name)
        export(source, folder / "sharded" / name, SHARD)
        table[name] = {**figures, "sha256": export_hash(folder / name)}
        table[name]["sharded_sha256"] = export_hash(folder / "sharded" / name)
        print(name, figures, flush=True)
    FIGURES.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
