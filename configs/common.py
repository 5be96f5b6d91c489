# SPDX-License-Identifier: Apache-2.0
"""Pieces that training configs share. Every section is the keyword arguments of one builder."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from llm.models.adapters import Adapter
from llm.models.config import default_fields
from llm.models.presets import PRESETS

# About functions, for `ask`.
QUESTIONS = (
    "What does `os.path.exists(path)` do?",
    "Explain `sorted(iterable)` in one sentence.",
)


def model(preset: str, **overrides: Any) -> ConfigDict:
    """Return every field of a preset, so that each can be overridden: --config.model.n_layers=8.

    A `vocab_size` of 0 takes the tokenizer's, rounded up to a multiple of 64.
    """
    return ConfigDict({**default_fields(), **PRESETS[preset], **overrides})


def training(model: ConfigDict, *, steps: int, batch_size: int, length: int) -> ConfigDict:
    """Return all sections of a training run with plain defaults."""
    config = ConfigDict()
    config.seed = 0
    config.platform = ""  # refuse to run elsewhere than on "tpu" or "gpu"; "" takes what is there
    config.model = model
    # "byte", or the folder that the tokenizer stage wrote; "" takes that of config.init.from
    config.tokenizer = ConfigDict({"path": "byte"})
    # path: what an earlier stage wrote; "" builds a small corpus from installed documentation
    # epochs: how often a row may come; 0 repeats the data as long as training goes on
    config.data = ConfigDict({"source": "documents", "path": "", "length": length, "epochs": 0})
    config.objective = ConfigDict({"name": "clm", "z_loss": 0.0, "chunk": 0})
    config.optimizer = ConfigDict(
        {"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.1, "clip_norm": 1.0}
    )
    config.schedule = ConfigDict(
        {"name": "warmup_cosine", "peak": 3e-4, "warmup_steps": 100, "end_fraction": 0.1}
    )
    config.train = ConfigDict(
        {
            "steps": steps,
            "batch_size": batch_size,
            "microbatches": 1,
            "log_every": 50,
            "eval_every": 500,
            "eval_first": False,
            "ema_decay": 0.0,
            "trainable": "",  # regular expression; "" trains the adapters, without any everything
            "stop_after": 0,
            "max_bad_steps": 20,
            "accept_new_data": False,
            "track": (),
            "norms_every": 0,
            # action: "log", "skip" the update, or "roll_back" and leave `skip` steps' data out
            "spike": {"window": 64, "factor": 8.0, "action": "log", "skip": 200, "max": 5},
            "heartbeat": 60.0,
            "step_timeout": 1800.0,
        }
    )
    # Sizes multiply to the number of devices; one may be -1, "the rest"
    config.mesh = ConfigDict(
        {
            "data": -1,
            "fsdp": 1,
            "tensor": 1,
            "context": 1,
            "expert": 1,
            "stage": 1,
            "dcn": 1,
        }
    )
    # What the sizes leave open: ZeRO-1 over data, sequence parallelism over tensor, the pipeline
    # over stage, optimizer state in the host's memory; see docs/scale.md
    config.sharding = ConfigDict(
        {"zero1": False, "sequence": False, "microbatches": 0, "repeats": 1, "offload": False}
    )
    config.init = ConfigDict({"from": ""})
    # strict: end (5) when the newest checkpoint is damaged, instead of using an older one
    config.checkpoint = ConfigDict({"every": 500, "keep_last": 2, "keep_every": 0, "strict": False})
    config.evals = ConfigDict({"validation": {"split": "validation", "every": 0, "batches": 16}})
    config.sampling = ConfigDict(
        {"every": 0, "prompts": ("The ",), "max_tokens": 48, "temperature": 0.8, "top_k": 0}
    )
    return config


def adapter(name: str = "none", **overrides: Any) -> dict[str, Any]:
    """Return every field of an adapter; "inherit" goes on with that of the run started from.

    Any other name first merges the adapters of that run, if it has some, into its weights.
    """
    return {**dataclasses.asdict(Adapter()), "name": name, **overrides}


def follow_up(*, steps: int, batch_size: int, length: int) -> ConfigDict:
    """Return a run that starts from another's checkpoint and keeps its model and tokenizer."""
    inherited = ConfigDict({"name": "inherit", "dropout": 0.0, "embed_noise": 0.0})
    inherited.adapter = adapter("inherit")
    config = training(inherited, steps=steps, batch_size=batch_size, length=length)
    config.tokenizer.path = ""
    config.train.eval_first = True
    return config


def ask(config: ConfigDict, *questions: str) -> None:
    """Put questions to the model before training and after it, for samples.jsonl and the report."""
    config.sampling.chat = True
    config.sampling.every = config.train.steps
    config.sampling.prompts = questions


def on_policy(*, steps: int, batch_size: int, length: int) -> ConfigDict:
    """Return a run that learns from its own answers, judged by config.rollout.rewards."""
    config = follow_up(steps=steps, batch_size=batch_size, length=length)
    # See llm/posttrain/rollout.py: a rollout has batch_size * minibatches answers
    config.rollout = ConfigDict(
        {
            "rewards": {},
            "gold": "",  # the reward that the monitors trust
            "group": 8,
            "minibatches": 1,
            "epochs": 1,
            "max_tokens": 64,
            "temperature": 1.0,
            "top_k": 0,
            "top_p": 1.0,
            "advantages": {"name": "group"},
            # place: "none" only measures; "reward" or "loss" pull to the model started from
            "kl": {"place": "none", "estimator": "k1", "coef": 0.0, "target": 0.0},
            "importance": {"name": "none", "most": 3.0, "least": 0.0},
            "missing_eos_penalty": 0.0,
            "mask_truncated": False,
            "reward_clip": 0.0,
            "monitors": {},
            "rows": 64,
            "chunk": 0,
        }
    )
    config.optimizer.weight_decay = 0.0
    config.schedule = ConfigDict({"name": "constant", "peak": 1e-5, "warmup_steps": 5})
    config.train.log_every = 5
    config.train.eval_every = max(1, steps // 4)
    config.evals.validation.batches = 4
    config.checkpoint.every = steps
    return config
