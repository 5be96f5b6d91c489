# SPDX-License-Identifier: Apache-2.0
"""What is added to a model for parameter-efficient tuning. No JAX, so that configs can import it.

Adapter parameters live in the model's own tree, beside the weight they change:
    …/query/{lora_a, lora_b, lora_m}   …/moe/{gate, up, down}_lora_{a, b}
    …/attention/{prefix_keys, prefix_values}   prompt/embedding   classifier/{kernel, bias}
    value_head/{kernel, bias}
so that one regular expression over names tells what is trained.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from llm.errors import ConfigError, unknown

NAMES = ("none", "lora", "dora", "prefix", "prompt")
BASES = ("full", "int8", "int4")

# Parameters that adapters add, and those that any new head adds.
ADDED = r"(^|[/_])lora_[abm]$|/prefix_(keys|values)$|^prompt/embedding$"
HEADS = r"^(classifier|value_head)/"
# Weights of a frozen base that can be kept as integers: matrices, but not the router of experts.
QUANTIZED = r"(^|/)(attention|cross|mlp|moe|shared)/.*kernel(/(q|q4|scale))?$"
KEPT = r"router|shared_gate"
EVERYTHING = ".*"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """Describe an adapter.

    Attributes:
        name: "none", "lora" (arXiv:2106.09685), "dora" (arXiv:2402.09353), "prefix" (keys and
            values before every layer's own, arXiv:2101.00190) or "prompt" (vectors before the
            embedded text, arXiv:2104.08691).
        rank: columns of A.
        alpha: the update is scaled by alpha / rank.
        rslora: scale by alpha / sqrt(rank) instead (arXiv:2312.03732).
        dropout: on the input of A, a mask per example.
        targets: regular expression searched in the path of a map, such as
            "decoder/layers/attention/query"; with prefixes, in that of an attention.
        length: virtual tokens of a prefix or prompt.
        base: how the frozen weights are kept: "full", "int8" or "int4" (QLoRA).
        block: weights that share a scale; 0 for all those of one output.
    """

    name: str = "none"
    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    dropout: float = 0.0
    targets: str = r"(query|key|value|output|gate|up|down)$"
    length: int = 16
    base: str = "full"
    block: int = 64

    @property
    def scale(self) -> float:
        """The factor of A·B."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    @property
    def virtual_tokens(self) -> int:
        """How many positions come before the text's own."""
        return self.length if self.name in ("prefix", "prompt") else 0

    @property
    def mergeable(self) -> bool:
        """Tell whether the adapter is a change of weights, or nothing at all."""
        return self.virtual_tokens == 0

    def covers(self, *path: str) -> bool:
        """Tell whether the map of this path has a low-rank update."""
        if self.name not in ("lora", "dora"):
            return False
        return re.search(self.targets, "/".join(path)) is not None

    def prefixes(self, *path: str) -> bool:
        """Tell whether the attention of this path has a prefix of its own."""
        return self.name == "prefix" and path[-1] == "attention"

    def quantizes(self, *path: str) -> bool:
        """Tell whether the parameter of this path is kept as integers."""
        name = "/".join(path)
        if self.base == "full" or re.search(KEPT, name):
            return False
        return re.search(QUANTIZED, name) is not None

    def validate(self) -> "Adapter":
        """Check every field and return the adapter.

        Raises:
            ConfigError: a field is out of range.
        """
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            kinds = (int, float) if kind is float else kind
            if not isinstance(value, kinds) or isinstance(value, bool) != (kind is bool):
                raise ConfigError(
                    f"model.adapter.{field.name}={value!r:.60} is not of type {kind.__name__}.",
                    "Correct it where the config was read from.",
                )
        for key, value, known in (("name", self.name, NAMES), ("base", self.base, BASES)):
            if value not in known:
                raise unknown(f"model.adapter.{key}", value, known)
        if self.rank < 1 or self.length < 1 or self.block < 0:
            raise ConfigError(
                f"model.adapter has rank={self.rank}, length={self.length}, block={self.block}.",
                "Use at least 1 (block: 0 for one scale per output).",
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"model.adapter.dropout={self.dropout}.", "Use 0 to below 1.")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ConfigError(
                f"model.adapter.targets={self.targets!r} is no regular expression: {error}.",
                "Use for example '(query|value)$'.",
            ) from error
        return self


NONE = Adapter()


def from_dict(fields: Mapping[str, Any]) -> Adapter:
    """Build an adapter from a plain dict.

    Raises:
        ConfigError: a key is unknown.
    """
    try:
        fields = dict(fields)
    except (TypeError, ValueError) as error:
        problem = "model.adapter is no table of fields."
        raise ConfigError(problem, "Restore the config.json.") from error
    known = [field.name for field in dataclasses.fields(Adapter)]
    for key in fields:
        if key not in known:
            raise unknown("model.adapter field", key, known)
    return Adapter(**{key: fields[key] for key in fields})


def trainable(adapter: Adapter, pattern: str = "") -> str:
    """Return the regular expression of what is trained: `pattern`, or what the adapter adds.

    A new classification head is trained along with an adapter.
    """
    if pattern:
        return pattern
    return EVERYTHING if adapter.name == "none" else f"{ADDED}|{HEADS}"
