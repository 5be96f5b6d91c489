# SPDX-License-Identifier: Apache-2.0
"""Open models from the places they come from."""

import dataclasses
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from llm import files
from llm.core.sharding import (
    ACTIVATION_RULES,
    PARAMETER_RULES,
    Layout,
    parameter_shardings,
    unbox,
)
from llm.core.trees import flatten
from llm.errors import ConfigError, DataError
from llm.generate import bases
from llm.generate.language_model import LanguageModel
from llm.models import quant
from llm.models.config import DTYPES, TransformerConfig, from_dict
from llm.models.transformer import Transformer

SOURCES = (
    "a workdir of this project (config.json and checkpoints/), a Hugging Face folder "
    "(config.json and *.safetensors) or a .gguf file"
)


def load(
    source: Any, dtype: str, step: int | None, mesh: Any, seen: tuple[str, ...] = ()
) -> LanguageModel:
    """Open a model; see `llm.generate.language_model.load`.

    Args:
        seen: the runs whose base this is; see `llm.generate.bases`.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype={dtype!r} is unknown.", f"Choose from: {', '.join(DTYPES)}.")
    place = files.path(source)
    if not place.exists():
        raise ConfigError(f"{place} does not exist.", f"A model is {SOURCES}.")
    if not place.is_dir():
        if place.suffix != ".gguf":
            raise ConfigError(f"{place} is not a model.", f"A model is {SOURCES}.")
        _no_step(step, place)
        return _load_gguf(place, dtype, mesh)
    place, step = _find_run(place, step)
    if not (place / "config.json").exists():
        if len(single := sorted(place.glob("*.gguf"))) == 1:
            _no_step(step, place)
            return _load_gguf(single[0], dtype, mesh)
        raise ConfigError(f"{place} holds no config.json.", f"A model is {SOURCES}.")
    settings = files.read_json(place / "config.json")
    if isinstance(settings, dict) and "model" in settings:
        return _load_run(place, settings, dtype, step, mesh, seen)
    if isinstance(settings, dict) and ("model_type" in settings or "architectures" in settings):
        _no_step(step, place)
        return _load_hf(place, dtype, mesh)
    raise DataError(
        f"{place / 'config.json'} describes no model: it has neither a 'model' section nor a "
        "'model_type'.",
        f"A model is {SOURCES}.",
    )


def _find_run(place: Any, step: int | None) -> tuple[Any, int | None]:
    """Return the run's folder and the step, given the run, its checkpoints/ or one step."""
    if (place / "config.json").exists():
        return place, step
    if place.name == "checkpoints":
        return place.parent, step
    if place.name.isdigit() and place.parent.name == "checkpoints":
        if step is not None and step != int(place.name):
            raise ConfigError(
                f"step={step} is asked for, but the path names step {place.name}.", "Give one."
            )
        return place.parent.parent, int(place.name)
    return place, step


def _no_step(step: int | None, place: Any) -> None:
    if step is not None:
        raise ConfigError(f"{place} has no steps.", "Leave step out for this kind of model.")


def _load_run(
    place: Any,
    settings: dict[str, Any],
    dtype: str,
    step: int | None,
    mesh: Any,
    seen: tuple[str, ...],
) -> LanguageModel:
    from llm.core import checkpoint

    stored = from_dict(settings["model"])
    config = for_inference(stored, dtype)
    model = Transformer(config)
    boxed = parameter_shapes(model)
    shardings = _shardings(boxed, mesh)
    # Integers and scales: laid out once they are weights
    quantized = "quantization" in settings or stored.adapter.base != "full"
    restored = checkpoint.restore(
        place,
        step=step,
        entries=("params",),
        shardings=None if shardings is None or quantized else {"params": shardings},
    )
    params = restored.tree["params"]
    if record := restored.extra.get(bases.RECORD):
        whole = unbox(parameter_shapes(Transformer(stored)))
        params = bases.complete(params, record, whole, place, mesh, seen)
    if quantized:
        params = quant.dequantize(params, dtype)
        params = params if shardings is None else jax.tree.map(jax.device_put, params, shardings)
    check_parameters(params, unbox(boxed), f"step {restored.step} of {place}")
    tokenizer = None
    if (place / "tokenizer" / "meta.json").exists():
        tokenizer = _tokenizer(place / "tokenizer")
        check_tokenizer(tokenizer, config, restored.extra.get("tokenizer_hash", ""), place)
    return LanguageModel(
        config,
        model,
        cast(params, dtype),
        tokenizer,
        mesh,
        # Training rows begin every document with its start token; imported models may differ.
        starts_texts=_section(settings, "generate").get("starts_texts") is not False,
        step=restored.step,
    )


def _section(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a stored config; {} where it is missing or something else."""
    found = settings.get(name)
    return found if isinstance(found, dict) else {}


def _load_hf(place: Any, dtype: str, mesh: Any) -> LanguageModel:
    from llm.models import convert, hf_config

    tensors = convert.open_folder(place)
    raw = files.read_json(place / "config.json")
    config = hf_config.read(raw, tensors.shapes)
    params = convert.import_tensors(
        tensors, config, raw["model_type"], dtype, _placer(config, mesh)
    )
    tokenizer = None
    if (place / "tokenizer.json").exists() or list(place.glob("*.model")):
        tokenizer = _tokenizer(place)
        check_tokenizer(tokenizer, config, "", place)
    starts, ends = adds_tokens(place)
    lm = assemble(config, params, tokenizer, dtype, mesh, str(place), starts)
    return dataclasses.replace(lm, ends_texts=ends)


def _load_gguf(place: Any, dtype: str, mesh: Any) -> LanguageModel:
    from llm.models import gguf

    file = gguf.open_file(place)
    beside = place.parent / "tokenizer.json"
    vocabulary = None if beside.exists() else gguf.read_vocabulary(file, place.name)
    config = gguf.read_config(file)
    params = gguf.read_parameters(file, config, dtype, _placer(config, mesh))
    tokenizer, starts = None, False
    if beside.exists():
        tokenizer, starts = _tokenizer(place.parent), adds_tokens(place.parent)[0]
    elif vocabulary is not None:
        tokenizer, starts = _from_vocabulary(vocabulary), vocabulary.adds_start
    if tokenizer is not None:
        check_tokenizer(tokenizer, config, "", place)
    return assemble(config, params, tokenizer, dtype, mesh, str(place), starts)


def _from_vocabulary(vocabulary: Any) -> Any:
    """Open a tokenizer given as the JSON files of a Hugging Face folder."""
    with tempfile.TemporaryDirectory() as folder:
        files.write_json(f"{folder}/tokenizer.json", vocabulary.file)
        files.write_json(f"{folder}/tokenizer_config.json", vocabulary.settings)
        return _tokenizer(folder)


def _placer(config: TransformerConfig, mesh: Any) -> Callable[[str, Any], Any] | None:
    """Return what puts one finished parameter onto the mesh; None without a mesh.

    Each device is given a copy of its own part, so the whole is never copied.
    """
    from llm.models.convert import aligned

    if mesh is None:
        return None
    shardings = flatten(
        _shardings(parameter_shapes(Transformer(config)), mesh),
        is_leaf=lambda x: isinstance(x, jax.sharding.Sharding),
    )

    def put(name: str, leaf: Any) -> jax.Array:
        def part(index: Any) -> Any:
            piece = leaf[index]
            memory = aligned(piece.shape, piece.dtype)
            memory[...] = piece
            return memory

        return jax.make_array_from_callback(leaf.shape, shardings[name], part)

    return put


def assemble(
    config: TransformerConfig,
    params: Any,
    tokenizer: Any = None,
    dtype: str = "float32",
    mesh: Any = None,
    name: str = "the model",
    starts_texts: bool = False,
) -> LanguageModel:
    """Make a LanguageModel of parameters in memory, checked and laid over the mesh.

    Raises:
        ConfigError: a parameter is missing, unexpected or of the wrong shape.
    """
    config = for_inference(config, dtype)
    model = Transformer(config)
    boxed = parameter_shapes(model)
    check_parameters(params, unbox(boxed), name)
    params = cast(params, dtype)
    shardings = _shardings(boxed, mesh)
    if shardings is not None:
        params = jax.tree.map(jax.device_put, params, shardings)
    return LanguageModel(config, model, params, tokenizer, mesh, starts_texts=starts_texts)


def for_inference(config: TransformerConfig, dtype: str) -> TransformerConfig:
    """Return the config with this dtype and nothing that only training needs."""
    return dataclasses.replace(
        config,
        dtype=dtype,
        param_dtype=dtype,
        remat="none",
        remat_names=(),
        matmul="dtype",
        dropout=0.0,
        stochastic_depth=0.0,
        embed_noise=0.0,
        adapter=dataclasses.replace(config.adapter, base="full", dropout=0.0),
    )


def parameter_shapes(model: Any) -> Any:
    """Return the boxed shapes of a model's parameters without making any."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def check_parameters(params: Any, expected: Any, name: str) -> None:
    """Compare names and shapes of parameters with those of the model.

    Raises:
        ConfigError: naming the first that differs.
    """
    have = {key: tuple(leaf.shape) for key, leaf in flatten(params).items()}
    want = {key: tuple(leaf.shape) for key, leaf in flatten(expected).items()}
    fix = "The config.json beside it must be the one it was trained or saved with."
    for key in [*want, *have]:
        if key not in have:
            raise ConfigError(f"{name} has no parameter {key}.", fix)
        if key not in want:
            raise ConfigError(f"{name} has the parameter {key}, which the model has not.", fix)
        if have[key] != want[key]:
            raise ConfigError(
                f"The parameter {key} of {name} is {list(have[key])}; the model's is "
                f"{list(want[key])}.",
                fix,
            )


def cast(params: Any, dtype: str) -> Any:
    """Return the parameters as device arrays, floating ones in this dtype."""

    def one(leaf: Any) -> jax.Array:
        floating = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype if floating else leaf.dtype)

    return jax.tree.map(one, params)


def _shardings(boxed: Any, mesh: Any) -> Any:
    if mesh is None:
        return None
    return parameter_shardings(boxed, Layout(mesh, PARAMETER_RULES, ACTIVATION_RULES))


def _tokenizer(place: Any) -> Any:
    from llm.tokenizers import loading

    return loading.load(place)


def check_tokenizer(
    tokenizer: Any, config: TransformerConfig, trained_with: str, place: Any
) -> None:
    """Refuse a tokenizer that is not the model's.

    Raises:
        ConfigError: it has more tokens than the model, or is not the one of the training.
    """
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"The tokenizer in {place} has {tokenizer.vocab_size} tokens, the model's vocabulary "
            f"{config.vocab_size}.",
            "Put the tokenizer that the model was trained with in its place.",
        )
    if trained_with and trained_with != tokenizer.hash:
        raise ConfigError(
            f"The model in {place} was trained with another tokenizer (hash {trained_with[:8]}, "
            f"not {tokenizer.hash[:8]}).",
            "Put the tokenizer that the model was trained with in its place.",
        )


def adds_tokens(place: Any) -> tuple[bool, bool]:
    """Tell whether a Hugging Face tokenizer puts a start token before a text and an end behind."""
    starts = ends = None
    if (place / "tokenizer_config.json").exists():
        told = files.read_json(place / "tokenizer_config.json")
        starts, ends = told.get("add_bos_token"), told.get("add_eos_token")
    if not (place / "tokenizer.json").exists():
        return starts is not False, bool(ends)  # a bare SentencePiece model: the Llama convention
    import tokenizers

    model = tokenizers.Tokenizer.from_str((place / "tokenizer.json").read_text(encoding="utf-8"))
    full, plain = model.encode("a").ids, model.encode("a", add_special_tokens=False).ids
    found = full[:1] != plain[:1], full[-1:] != plain[-1:]
    return found[0] if starts is None else bool(starts), found[1] if ends is None else bool(ends)
