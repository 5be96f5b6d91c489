# SPDX-License-Identifier: Apache-2.0
"""The one configuration class of every transformer: decoder, encoder, encoder-decoder. No JAX."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from llm.errors import ConfigError, unknown
from llm.models import adapters

ARCHITECTURES = ("decoder", "encoder", "encoder_decoder")
NORMS = ("rmsnorm", "layernorm")
# Where a block normalises: before each sublayer, after each residual sum (BERT), around each
# sublayer (Gemma 2), or only the sublayer's output before the residual sum (OLMo 2).
NORM_PLACEMENTS = ("pre", "post", "sandwich", "output")
POSITIONS = ("rope", "learned", "sinusoidal", "alibi", "t5", "none")
ROPE_SCALINGS = ("none", "linear", "ntk", "yarn", "llama3")
GATED = ("swiglu", "geglu", "geglu_tanh", "reglu")
ACTIVATIONS = (*GATED, "gelu", "gelu_tanh", "relu", "relu2", "silu")
QK_NORMS = ("none", "head", "full")  # over each head (Qwen 3), over all heads together (OLMo 2)
PARALLEL = ("none", "shared_norm", "two_norms")  # one norm (GPT-J, Falcon) or two (GPT-NeoX)
REMATS = ("none", "full", "dots", "save", "offload")
# What remat="save" may keep of a layer: outputs of its dense maps, attention's own, its input.
SAVED = ("query", "key", "value", "context", "output", "gate", "up", "down", "residual")
MATMULS = ("dtype", "int8", "fp8")
DTYPES = ("float32", "bfloat16", "float16")
ATTENTIONS = ("auto", "xla", "dot_product", "chunked", "splash")
INITIALISERS = ("truncated", "normal", "fan_in")
ROUTERS = ("softmax", "sigmoid")
DISPATCHES = ("dropless", "capacity")
CLASSIFIERS = ("sequence", "token")  # of whole texts, or of every token
MAX_LAYERS = 10_000  # more is a damaged file
HEADS = ("linear", "mlm", *CLASSIFIERS)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Describe a transformer; a zero in `n_kv_heads`, `head_dim`, `d_ff` means "the usual one".

    After construction those fields hold the derived numbers. Call `validate()` for a checked one.
    """

    architecture: str = "decoder"
    # Sizes
    vocab_size: int = 512
    n_layers: int = 2
    n_encoder_layers: int = 0  # encoder-decoder only; 0 = n_layers
    d_model: int = 64
    n_heads: int = 4
    n_kv_heads: int = 0  # 0 = n_heads; 1 = multi-query
    head_dim: int = 0  # 0 = d_model / n_heads
    d_ff: int = 0  # 0 = 4 * d_model
    max_length: int = 2048  # of the text: virtual tokens have positions of their own
    # Norms
    norm: str = "rmsnorm"
    norm_eps: float = 1e-5
    norm_placement: str = "pre"
    norm_unit_offset: bool = False  # scale is stored minus one (Gemma)
    embed_norm: bool = False  # normalise the embeddings (BERT)
    final_norm: bool = True
    # Positions
    position: str = "rope"
    position_offset: int = 0  # unused leading rows of a learned table (OPT, RoBERTa: 2)
    rope_theta: float = 10_000.0
    rope_local_theta: float = 0.0  # base of the local layers (Gemma 3); 0 = rope_theta, unscaled
    rope_partial: float = 1.0  # the fraction of a head that rotates
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_original_length: int = 0  # positions seen before scaling (YaRN, Llama 3)
    rope_low_freq_factor: float = 1.0  # Llama 3
    rope_high_freq_factor: float = 4.0
    rope_beta_fast: float = 32.0  # YaRN
    rope_beta_slow: float = 1.0
    rope_attention_factor: float = 0.0  # YaRN; 0 = 0.1 ln(factor) + 1
    relative_buckets: int = 32  # T5
    relative_max_distance: int = 128
    # Attention
    prefix_lm: bool = False  # a prompt's tokens see each other both ways (decoder); set by training
    qk_norm: str = "none"
    attention_scale: float = 0.0  # 0 = head_dim ** -0.5
    attention_softcap: float = 0.0  # 0 = none
    attention_sinks: bool = False  # a learned logit per head that takes probability, gives nothing
    window: int = 0  # keys a local layer sees, itself included; 0 = all
    window_pattern: str = "L"  # local/global letters repeated over the layers: "LG", "LLLLLG"
    attention_bias: bool = False  # on query, key and value
    attention_out_bias: bool = False
    attention: str = "auto"
    attention_chunk: int = 512  # keys and queries at a time in the chunked backend
    # Feed-forward
    activation: str = "swiglu"
    mlp_bias: bool = False
    parallel_block: str = "none"
    # Mixture of experts (n_experts = 0: dense)
    n_experts: int = 0
    experts_per_token: int = 2
    n_shared_experts: int = 0
    shared_expert_gate: bool = False  # a learned sigmoid per token scales them (Qwen 2 MoE)
    d_expert: int = 0  # hidden size of one expert; 0 = d_ff
    router: str = "softmax"
    router_normalize: bool = True  # the chosen experts' weights sum to one
    moe_dispatch: str = "dropless"
    capacity_factor: float = 1.25
    # Embeddings and heads
    tied_embeddings: bool = True
    embed_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float = 0.0  # 0 = none
    head: str = "linear"
    head_bias: bool = False
    token_types: int = 0  # BERT's sentence A / B
    pooler: bool = False
    n_classes: int = 0  # of a classification head; 0 = those of the data
    labels: tuple[str, ...] = ()  # their names
    value_head: bool = False  # beside the head: what reward a text will earn (PPO)
    # What is added for parameter-efficient tuning
    adapter: adapters.Adapter = adapters.NONE
    # Regularisation
    dropout: float = 0.0
    stochastic_depth: float = 0.0  # drop rate of the last layer; earlier layers linearly less
    embed_noise: float = 0.0  # size of the noise on embeddings in training (NEFTune), 0 = none
    # Initialisation
    init: str = "truncated"
    init_std: float = 0.02
    # Execution
    scan_layers: bool = True  # False unrolls the same stacked parameters
    remat: str = "none"
    remat_names: tuple[str, ...] = ()  # what remat="save" keeps, of SAVED
    matmul: str = "dtype"  # "int8", "fp8": dense layers multiply in 8 bits while training
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(self.adapter, adapters.Adapter):  # read from JSON
            object.__setattr__(self, "adapter", adapters.from_dict(self.adapter))
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "remat_names", tuple(self.remat_names))
        if self.n_heads < 1:
            return
        fill = {
            "n_kv_heads": self.n_heads,
            # Left at zero when it does not divide, for validate() to refuse.
            "head_dim": 0 if self.d_model % self.n_heads else self.d_model // self.n_heads,
            "d_ff": 4 * self.d_model,
        }
        if self.architecture == "encoder_decoder":
            fill["n_encoder_layers"] = self.n_layers
        if self.n_experts:
            fill["d_expert"] = self.d_ff or fill["d_ff"]
        for name, value in fill.items():
            if getattr(self, name) == 0:
                object.__setattr__(self, name, value)

    @property
    def causal(self) -> bool:
        """Tell whether the (main) stack attends backwards only."""
        return self.architecture != "encoder"

    @property
    def classifies(self) -> bool:
        """Tell whether the head gives classes, not tokens."""
        return self.head in CLASSIFIERS

    @property
    def stochastic(self) -> bool:
        """Tell whether training draws random numbers inside the model."""
        rates = (self.dropout, self.stochastic_depth, self.embed_noise, self.adapter.dropout)
        return any(rate > 0 for rate in rates)

    def is_local(self, layer: int) -> bool:
        """Tell whether a layer attends within `window` only."""
        pattern = self.window_pattern
        return self.window > 0 and pattern[layer % len(pattern)] == "L"

    def validate(self) -> "TransformerConfig":
        """Check every field and return the config.

        Raises:
            ConfigError: a field is out of range, unknown, or contradicts another.
        """
        _check_choices(self)
        _check_ranges(self)
        _check_combinations(self)
        _check_added(self)
        return self

    def check_length(self, length: int) -> None:
        """Refuse a sequence longer than a learned position table (other kinds extrapolate).

        Raises:
            ConfigError: `length` has no row in the table.
        """
        if self.position == "learned" and length > self.max_length:
            raise ConfigError(
                f"The model has {self.max_length} learned positions and was given {length} tokens.",
                "Shorten the data's length or raise model.max_length.",
            )


_CHOICES: dict[str, Sequence[str]] = {
    "architecture": ARCHITECTURES,
    "norm": NORMS,
    "norm_placement": NORM_PLACEMENTS,
    "position": POSITIONS,
    "rope_scaling": ROPE_SCALINGS,
    "qk_norm": QK_NORMS,
    "activation": ACTIVATIONS,
    "parallel_block": PARALLEL,
    "attention": ATTENTIONS,
    "router": ROUTERS,
    "moe_dispatch": DISPATCHES,
    "head": HEADS,
    "init": INITIALISERS,
    "remat": REMATS,
    "matmul": MATMULS,
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}

# (lowest, highest) allowed, inclusive; None = open.
_RANGES: dict[str, tuple[float, float | None]] = {
    **dict.fromkeys(("vocab_size", "d_model", "n_heads", "n_kv_heads"), (1, None)),
    "n_layers": (1, MAX_LAYERS),
    "n_encoder_layers": (0, MAX_LAYERS),
    **dict.fromkeys(("head_dim", "d_ff", "max_length", "attention_chunk"), (1, None)),
    **dict.fromkeys(("window", "n_experts", "n_shared_experts", "token_types"), (0, None)),
    **dict.fromkeys(("attention_softcap", "logit_softcap", "attention_scale"), (0, None)),
    **dict.fromkeys(("position_offset", "rope_local_theta"), (0, None)),
    **dict.fromkeys(("dropout", "stochastic_depth"), (0, 0.999)),
    "embed_noise": (0, None),
    "rope_partial": (0.01, 1.0),
    "rope_factor": (1.0, None),
    "rope_theta": (1.0, None),
    "norm_eps": (0.0, 1.0),
    "relative_buckets": (4, None),
    "capacity_factor": (0.01, None),
    "init_std": (0.0, None),
}


# What a field of this type accepts, and its name; booleans are no numbers.
_KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (numbers.Integral, "a whole number of 32 bits"),
    float: (numbers.Real, "a finite number"),
    str: (str, "a string"),
}
_LIMITS = {int: 2**31, float: 1e30}  # arrays of positions, lengths and windows are int32


def _check_types(fields: dict[str, Any]) -> None:
    """Refuse values read from a file that are not of their field's type, or not finite."""
    types = {field.name: field.type for field in dataclasses.fields(TransformerConfig)}
    for name, value in fields.items():
        kind = types[name]
        if kind not in _KINDS:
            continue
        accepted, what = _KINDS[kind]
        good = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
        if not good or (kind in _LIMITS and not abs(value) < _LIMITS[kind]):
            raise ConfigError(
                f"model.{name}={value!r:.60} is not {what}.",
                "Correct it where the config was read from.",
            )


def _check_choices(config: TransformerConfig) -> None:
    for name, known in _CHOICES.items():
        value = getattr(config, name)
        if value not in known:
            raise unknown(f"model.{name}", value, known)


def _check_ranges(config: TransformerConfig) -> None:
    for name, (lowest, highest) in _RANGES.items():
        value = getattr(config, name)
        if name == "head_dim" and value == 0:
            raise ConfigError(
                f"model.d_model={config.d_model} is not a multiple of "
                f"model.n_heads={config.n_heads}.",
                "Change one of the two or set model.head_dim.",
            )
        if value < lowest or (highest is not None and value > highest):
            limit = f"at least {lowest}" if highest is None else f"between {lowest} and {highest}"
            raise ConfigError(f"model.{name}={value} is out of range.", f"Use {limit}.")


def _check_combinations(config: TransformerConfig) -> None:
    c = config
    rotated = int(c.head_dim * c.rope_partial)
    rules = (
        (
            c.n_heads % c.n_kv_heads == 0,
            f"model.n_heads={c.n_heads} is not a multiple of model.n_kv_heads={c.n_kv_heads}.",
            "Each key-value head serves the same number of query heads: change one of the two.",
        ),
        (
            c.position != "rope" or rotated % 2 == 0,
            f"Rotary positions need an even number of dimensions, not {rotated}.",
            "Make model.head_dim * model.rope_partial even.",
        ),
        (
            c.rope_scaling not in ("yarn", "llama3") or c.rope_original_length > 0,
            f"model.rope_scaling={c.rope_scaling!r} needs model.rope_original_length.",
            "Set it to the length the unscaled model was trained with.",
        ),
        (
            len(c.window_pattern) > 0 and set(c.window_pattern) <= {"L", "G"},
            f"model.window_pattern={c.window_pattern!r} is not a word of the letters L and G.",
            "Use for example 'L' (all local), 'LG' (alternating) or 'LLLLLG'.",
        ),
        (
            c.n_experts == 0 or 1 <= c.experts_per_token <= c.n_experts,
            f"model.experts_per_token={c.experts_per_token} is not between 1 and "
            f"model.n_experts={c.n_experts}.",
            "Change one of the two.",
        ),
        (
            c.n_experts == 0 or c.activation in GATED,
            f"Experts are gated, but model.activation={c.activation!r} is not.",
            f"Choose from: {', '.join(GATED)}.",
        ),
        (
            c.head != "mlm" or c.architecture == "encoder",
            f"model.head='mlm' does not fit model.architecture={c.architecture!r}.",
            "Use model.head='linear'.",
        ),
        (
            c.parallel_block == "none" or c.norm_placement == "pre",
            f"model.parallel_block={c.parallel_block!r} needs model.norm_placement='pre'.",
            "Change one of the two.",
        ),
        (
            not c.prefix_lm or c.architecture == "decoder",
            f"model.prefix_lm does not fit model.architecture={c.architecture!r}.",
            "A prefix mask is for decoders.",
        ),
        (
            set(c.remat_names) <= set(SAVED) and bool(c.remat_names) == (c.remat == "save"),
            f"model.remat_names={c.remat_names!r} does not fit model.remat={c.remat!r}.",
            f"Give remat='save' one or more of {', '.join(SAVED)}; the others none.",
        ),
        (
            c.position != "alibi" or c.architecture == "decoder",
            "ALiBi is defined for decoders.",
            "Choose another model.position for encoders.",
        ),
    )
    for holds, problem, fix in rules:
        if not holds:
            raise ConfigError(problem, fix)


def _check_added(config: TransformerConfig) -> None:
    """Check the adapter and the classification head."""
    adapter = config.adapter.validate()
    if adapter.name == "prompt" and config.architecture != "decoder":
        raise ConfigError(
            "Prompt tuning is for decoders: in an encoder the prompt would see the text.",
            "Use model.adapter.name='prefix'.",
        )
    experts = f"{'encoder' if config.architecture == 'encoder' else 'decoder'}/layers/moe/up"
    if config.n_experts and adapter.covers(experts) and (adapter.dropout or adapter.name == "dora"):
        raise ConfigError(
            "The experts' low-rank updates have neither dropout nor DoRA's magnitudes.",
            "Leave them out with model.adapter.targets='(query|key|value|output)$'.",
        )
    if config.value_head and (config.architecture != "decoder" or config.classifies):
        raise ConfigError(
            "A value head is for decoders that choose tokens.", "Set model.value_head=false."
        )
    if config.labels and len(config.labels) != config.n_classes:
        raise ConfigError(
            f"model.labels names {len(config.labels)} classes, model.n_classes is "
            f"{config.n_classes}.",
            "Give as many names as classes, or none.",
        )


def default_fields() -> dict[str, Any]:
    """Return every field at its default, as plain data: what a config file starts from."""
    fields = {field.name: field.default for field in dataclasses.fields(TransformerConfig)}
    return {**fields, "adapter": dataclasses.asdict(adapters.Adapter())}


def inherit(fields: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    """Fill a model section from the config of the run it starts from.

    The adapter "inherit" is that run's own.
    """
    made = {**inherited, **fields}
    given = dict(made.pop("adapter", {}))
    old = adapters.from_dict(inherited.get("adapter", {}))
    new = old if given.get("name") == "inherit" else adapters.from_dict(given)
    if made.get("position") == "learned" and "max_length" not in fields:
        made["max_length"] += old.virtual_tokens - new.virtual_tokens
    return {**made, "adapter": dataclasses.asdict(new)}


def with_adapter(config: TransformerConfig, adapter: adapters.Adapter) -> TransformerConfig:
    """Return the config with another adapter on the same base.

    Virtual tokens take rows of a table of learned positions from the text.
    """
    fields = inherit({"adapter": dataclasses.asdict(adapter)}, dataclasses.asdict(config))
    return TransformerConfig(**fields).validate()


def from_dict(fields: dict[str, Any]) -> TransformerConfig:
    """Build a checked config from a plain dict, as read from a checkpoint's `config.json`.

    Raises:
        ConfigError: a key is unknown or a value is out of range.
    """
    if not isinstance(fields, Mapping):
        raise ConfigError("The model section is no table of fields.", "Restore the config.json.")
    known = [field.name for field in dataclasses.fields(TransformerConfig)]
    for key in fields:
        if key not in known:
            raise unknown("model field", key, known)
    _check_types(fields)
    for key in ("labels", "remat_names"):
        names = fields.get(key, ())
        if not isinstance(names, list | tuple) or not all(isinstance(x, str) for x in names):
            raise ConfigError(f"model.{key} is no list of names.", "Restore the config.json.")
    kinds = {field.name: field.type for field in dataclasses.fields(TransformerConfig)}
    # A whole number is a good float, but arrays take it for an int32, which it may not fit.
    fields = {key: float(x) if kinds[key] is float else x for key, x in fields.items()}
    return TransformerConfig(**fields).validate()
