# SPDX-License-Identifier: Apache-2.0
"""Sample generations while training, printed and kept in `samples.jsonl`."""

import json
import logging
from collections.abc import Mapping
from typing import Any

import jax

from llm import files
from llm.core import config as configs
from llm.core import sharding
from llm.core.lines import Lines
from llm.errors import UserError
from llm.generate.language_model import LanguageModel
from llm.train.loop import Hook
from llm.train.step import Frozen, State, full_params

_LOG = logging.getLogger("llm.samples")


def make_sampler(
    prompts: tuple[str, ...],
    *,
    every: int = 0,
    max_tokens: int = 48,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    chat: bool = False,
    seed: int = 0,
) -> tuple[int, Any]:
    """Read the sampling section of a config.

    Args:
        prompts: texts to continue, or questions to answer.
        every: steps between samples; 0 for none.
        max_tokens: of each sample.
        temperature: 0 is greedy.
        top_k: 0 for all.
        top_p: 1 for all.
        chat: wrap each prompt as a user's message.
        seed: of the draws; the same at every step, so that samples can be compared.
    """

    def sample(lm: LanguageModel) -> list[tuple[str, str]]:
        texts = [[{"role": "user", "content": p}] for p in prompts] if chat else list(prompts)
        answers = lm.generate(
            texts,
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            seed=seed,
        )
        return list(zip(prompts, answers, strict=True))

    return every, sample


def hooks(config: Any, workdir: str, inputs: Any, frozen: Frozen) -> list[Hook]:
    """Return the sampling hook, or none where config.sampling.every is 0."""
    section: Mapping[str, Any] = configs.bind(make_sampler, config.sampling, "sampling")
    every, sample = make_sampler(**section)
    chat = bool(section.get("chat"))
    if not every or inputs.tokenizer is None or jax.process_count() > 1:
        return []
    target = Lines(files.path(workdir) / "samples.jsonl")

    def function(step: int, state: State) -> dict[str, float]:
        full = full_params(state.params, frozen)
        lm = LanguageModel(inputs.model.config, inputs.model, full, inputs.tokenizer)
        try:
            with sharding.within(None):
                made = sample(lm)
        except UserError as error:  # a prompt that is too long is no reason to stop training
            _LOG.warning("no samples: %s", " ".join(str(error).split()))
            return {}
        for prompt, text in made:
            line = {"step": step, "prompt": prompt, "text": text, "chat": chat}
            print(f"step {step:>6}  sample: {prompt!r} -> {text!r}", flush=True)
            _append(target, line)
        return {}

    return [Hook("samples", function, every)]


def _append(target: Lines, line: dict[str, Any]) -> None:
    """Add a line; a full disk is no reason to stop training."""
    try:
        target.append(json.dumps(line, ensure_ascii=False))
    except OSError as error:
        _LOG.warning("samples cannot be written (%s)", error)
