# SPDX-License-Identifier: Apache-2.0
"""Wire the stages: which name in a config means which function, and what feeds what.

Names point to "module:function" so that reading a config imports nothing heavy.
"""

import dataclasses
from typing import Any

from llm import files, startup
from llm.core import config as configs
from llm.core import launch
from llm.errors import ConfigError

# config.objective.name: (model, **section) -> Objective
OBJECTIVES = {
    "clm": "llm.train.objective:cross_entropy",
    "sft": "llm.train.objective:cross_entropy",
    "mlm": "llm.train.objective:cross_entropy",
    "span_corruption": "llm.train.objective:cross_entropy",
    "prefix_lm": "llm.train.objective:cross_entropy",
    "ul2": "llm.train.objective:cross_entropy",
    "fim": "llm.train.objective:cross_entropy",
    "dpo": "llm.posttrain.preference:dpo",
    "ipo": "llm.posttrain.preference:ipo",
    "kto": "llm.posttrain.preference:kto",
    "orpo": "llm.posttrain.preference:orpo",
    "simpo": "llm.posttrain.preference:simpo",
    "cpo": "llm.posttrain.preference:cpo",
    "distill": "llm.train.distill:distill",
    "gkd": "llm.train.distill:gkd",
    "reward": "llm.posttrain.reward:reward",
    "classify": "llm.posttrain.classify:classify",
    "ppo": "llm.posttrain.policy:ppo",
    "grpo": "llm.posttrain.policy:grpo",
    "rloo": "llm.posttrain.policy:rloo",
    "reinforce_pp": "llm.posttrain.policy:reinforce_pp",
}

# config.data.source: (tokenizer, folder, **section) -> {"train": rows, "validation": rows}
DATA = {
    "documents": "llm.pretrain.rows:documents",
    "text": "llm.pretrain.rows:text",
    "rows": "llm.pretrain.rows:rows",
    "tfds": "llm.pretrain.rows:tfds",
    "chats": "llm.posttrain.rows:chats",
    "preferences": "llm.posttrain.rows:preferences",
    "answers": "llm.posttrain.rows:answers",
    "function_answers": "llm.posttrain.rows:function_answers",
    "function_questions": "llm.posttrain.rows:function_questions",
    "function_preferences": "llm.posttrain.rows:function_preferences",
    "labels": "llm.posttrain.labels:labels",
    "document_labels": "llm.posttrain.labels:document_labels",
    "puzzle_chats": "llm.posttrain.rows:puzzle_chats",
    "puzzle_preferences": "llm.posttrain.rows:puzzle_preferences",
}

# config.data.source of questions that the model answers while it learns: (**section) ->
# {"train": tasks, "validation": tasks}. The section config.rollout says how they are answered.
PROMPTS = {
    "tasks": "llm.posttrain.prompts:tasks",
    "puzzles": "llm.posttrain.prompts:puzzles",
    "function_tasks": "llm.posttrain.prompts:functions",
}

# Objectives that learn from the model's own answers, judged by config.rollout.rewards …
ON_POLICY = ("ppo", "grpo", "rloo", "reinforce_pp")
# … and those that may, by a teacher; config.answers says how they are made
TAUGHT = ("distill", "gkd")

# config.data.corruption.name: (tokenizer, length, vocab_size, **section) -> transform of rows
CORRUPTIONS = {
    "mlm": "llm.pretrain.denoise:mlm",
    "span_corruption": "llm.pretrain.denoise:span_corruption",
    "prefix_lm": "llm.pretrain.prefix:prefix_lm",
    "ul2": "llm.pretrain.prefix:ul2",
    "fim": "llm.pretrain.fim:fim",
}

# Objectives whose rows show a decoder a first part of each document both ways.
PREFIXED = ("prefix_lm", "ul2")

_GIVEN = ("tokenizer", "length", "vocab_size")  # what main gives to a corruption

EMBEDDED_CORPUS = "corpus/tiny.py"  # made when config.data.path is empty


def corpus(config: Any, workdir: str) -> Any:
    """Make clean document shards and their datasheet."""
    from llm.report import datasheet

    result = _stage("llm.corpus.stage", config, workdir)
    datasheet.write(workdir)
    return result


def tokenizer(config: Any, workdir: str) -> Any:
    """Train a tokenizer."""
    return _stage("llm.tokenizers.stage", config, workdir)


def eval(config: Any, workdir: str) -> Any:
    """Measure a model on tasks."""
    return _stage("llm.eval.stage", config, workdir)


def compress(config: Any, workdir: str) -> Any:
    """Make a model smaller and say what it cost."""
    return _stage("llm.compress.stage", config, workdir)


def serve(config: Any, workdir: str) -> Any:
    """Answer over HTTP."""
    return _stage("llm.serve.stage", config, workdir)


def feedback(config: Any, workdir: str) -> Any:
    """Make data with a model: best of n, judged pairs, revisions, refusals."""
    return _stage("llm.posttrain.feedback", config, workdir)


def rounds(config: Any, workdir: str) -> Any:
    """Collect answers, judge them, train a reward model and a policy on it, and again."""
    from llm.posttrain import rounds as stage

    stage.check(config)
    check_training(config.reward)
    check_training(config.policy)
    builder = configs.resolve_builder(PROMPTS[config.policy.data.source])
    asked = builder(**_prompt_options(config.policy))["train"].items
    return stage.run(config, workdir, stage.Stages(feedback, train), asked)


def label(config: Any, workdir: str) -> Any:
    """Let people say which answer is better."""
    return _stage("llm.label.stage", config, workdir)


def plan(config: Any, workdir: str, topology: str, compile: str, search: str, json: str) -> Any:
    """Say whether a run fits its machine, and how fast it could be; or look for what fits."""
    from llm.plan import search as dial
    from llm.plan import stage

    if search == "true":
        return dial.run(config, topology, json=json == "true", objectives=OBJECTIVES)
    return stage.run(
        config,
        workdir,
        topology=topology,
        compile=compile == "true",
        json=json == "true",
        objectives=OBJECTIVES,
    )


def pretrain(config: Any, workdir: str) -> Any:
    """Train a model on documents."""
    return train(config, workdir)


def posttrain(config: Any, workdir: str) -> Any:
    """Train a model further on chats or preferences."""
    return train(config, workdir)


def _stage(module: str, config: Any, workdir: str) -> Any:
    return configs.resolve_builder(f"{module}:run")(config, workdir)


def check_training(config: Any) -> None:
    """Bind every section of a training config to its builder; imports them, runs nothing.

    Raises:
        ConfigError: a section or key is unknown or missing.
    """
    from llm.core import checkpoint, sharding
    from llm.data import mixing
    from llm.models import adapters
    from llm.models.config import TransformerConfig
    from llm.train import optim, run, samples, spikes

    objective = configs.choose(config.objective.name, OBJECTIVES, "objective")
    builder = configs.resolve_builder(objective)
    configs.bind(builder, config.objective, "objective", given=("model",))
    if (config.data.source in PROMPTS) or (config.objective.name in ON_POLICY):
        _check_answers(config)
    for name, section in sources(config).items():
        if section["source"] in PROMPTS:
            continue
        source = configs.choose(section["source"], DATA, "data source")
        options = {k: v for k, v in section.items() if k != "source"}
        builder = configs.resolve_builder(source)
        configs.bind(builder, options, name, given=("tokenizer", "folder"))
    configs.bind(mixing.plan, config.data.get("mixing", {}), "data.mixing", given=mixing.GIVEN)
    corruption = config.data.get("corruption", {})
    if config.objective.name in CORRUPTIONS and config.data.source != "rows":
        _check_corruption(config.objective.name, corruption.get("name"))
    if corruption:
        builder = configs.resolve_builder(
            configs.choose(corruption["name"], CORRUPTIONS, "corruption")
        )
        configs.bind(builder, corruption, "data.corruption", given=_GIVEN)
    added = dict(config.model.get("adapter", {}))
    if added.get("name", "inherit") != "inherit":
        adapters.from_dict(added).validate()
    if config.model.get("name") != "inherit":
        fields = configs.bind(TransformerConfig, config.model, "model")
        if fields["vocab_size"]:
            TransformerConfig(**fields).validate()
    configs.bind(run.Settings, config.train, "train")
    configs.bind(sharding.Choices, config.get("sharding", {}), "sharding")
    spikes.make(config.train.get("spike", {}))
    optimizer = configs.choose(config.optimizer.name, optim.OPTIMIZERS, "optimizer")
    shared = ("clip_norm", "no_decay", "scales")
    own = {k: v for k, v in config.optimizer.items() if k not in shared}
    configs.bind(optimizer, own, "optimizer", given=("parts",))
    schedule = configs.choose(config.schedule.name, optim.SCHEDULES, "schedule")
    configs.bind(schedule, config.schedule, "schedule", given=("steps",))
    configs.bind(samples.make_sampler, config.sampling, "sampling")
    kept = {k: v for k, v in config.checkpoint.items() if k != "every"}
    configs.bind(checkpoint.Checkpointer, kept, "checkpoint", given=("directory",))


def _check_answers(config: Any) -> None:
    """Bind the sections of a run that learns from its own answers.

    Raises:
        ConfigError: objective and data do not go together, or an option is unknown.
    """
    from llm.posttrain import own_answers, rollout

    builder = configs.resolve_builder(
        configs.choose(config.data.source, PROMPTS, f"data source of {config.objective.name}")
    )
    known = dict.fromkeys((*ON_POLICY, *TAUGHT))
    configs.choose(config.objective.name, known, "objective of prompts")
    configs.bind(builder, _prompt_options(config), "data")
    if config.objective.name in ON_POLICY:
        rollout.check(config.get("rollout", {}))
        return
    own_answers.check(config.get("answers", {}))
    if config.objective.teacher == "rows":
        raise ConfigError(
            "config.objective.teacher='rows' knows nothing of answers that are yet to be drawn.",
            "Give --config.objective.teacher=<workdir or folder of the teacher>.",
        )


def _prompt_options(config: Any) -> dict[str, Any]:
    """Return what the builder of prompts is given of config.data; `length` is of the rows."""
    beside = ("source", "length", "epochs", "mixture", "corruption")
    return {k: v for k, v in config.data.items() if k not in beside}


def _check_corruption(objective: str, found: str | None) -> None:
    """Refuse an objective whose noise is not in the data: it would learn to copy.

    Raises:
        ConfigError: config.data.corruption is another one, or missing.
    """
    if objective != found:
        raise ConfigError(
            f"config.objective.name={objective!r}, but config.data.corruption is {found!r}.",
            f"Set config.data.corruption to {{'name': {objective!r}, ...}}.",
        )


def sources(config: Any) -> dict[str, dict[str, Any]]:
    """Return the data sources by name: one, or those of config.data.mixture."""
    from llm.data import mixing

    beside = ("mixture", "mixing", "corruption", "epochs", "teacher")
    section = {k: v for k, v in config.data.items() if k not in beside}
    mixture = config.data.get("mixture", {})
    if not mixture:
        return {"data": section}
    return {
        name: {**section, **{k: v for k, v in part.items() if k not in mixing.SHARES}}
        for name, part in mixture.items()
    }


def train(config: Any, workdir: str) -> Any:
    """Train a model: any objective on any data, from scratch or from another run."""
    check_training(config)
    launch.require_platform(config.platform)
    import jax

    from llm.core import lock, profile
    from llm.models.transformer import Transformer
    from llm.train import run

    first = jax.process_index() == 0
    with lock.hold(workdir, jax.process_index()):
        origin = config.init["from"]
        adapter = config.model.get("adapter", {}).get("name", "inherit")
        start, base = startup.load_start(origin, adapter, workdir)
        tokens = startup.open_tokenizer(config, start)
        inherited = dataclasses.asdict(start.config) if start else None
        shape = startup.model_config(config.model, tokens, inherited)
        length = int(config.data.length)
        if length > shape.max_length:
            raise ConfigError(
                f"config.data.length={length} is beyond the model's {shape.max_length} positions.",
                f"Set config.data.length={shape.max_length} or less.",
            )
        answers = config.data.source in PROMPTS
        if not answers:
            with startup.first_alone():
                feed, splits = _rows(config, workdir, tokens, shape.vocab_size, start)
            shape = startup.with_classes(shape, splits)
        both_ways = config.objective.name in PREFIXED and shape.architecture == "decoder"
        shape = dataclasses.replace(shape, prefix_lm=both_ways)
        resolved = configs.to_dict(config)
        resolved["model"] = dataclasses.asdict(shape)
        if first:
            root = files.path(workdir)
            files.write_json(root / "config.json", resolved)
            files.write_json(root / "environment.json", profile.environment())
            tokens.save(str(root / "tokenizer"))
        model = Transformer(shape)
        builder = configs.resolve_builder(OBJECTIVES[config.objective.name])
        section = configs.bind(builder, config.objective, "objective", given=("model",))
        objective = builder(model, **section)
        if answers:
            feed, splits = _answers(config, workdir, start, model, objective)
        state = run.train(
            config,
            workdir,
            run.Inputs(
                model,
                objective,
                feed,
                splits,
                tokens,
                start.params if start else None,
                origin,
                base,
            ),
        )
        if first:
            _report(workdir)
        return state


def _report(workdir: str) -> None:
    """Write the run's page."""
    from llm.report.run_report import run_report

    print(f"report: {run_report(workdir)}")


def _rows(
    config: Any, workdir: str, tokens: Any, vocab_size: int, start: Any
) -> tuple[Any, dict[str, Any]]:
    """Prepare the rows of every source; return the training feed and the held-out splits."""
    from llm.core import sharding, shards
    from llm.data import mixing

    found = {}
    for name, section in sources(config).items():
        options = dict(section)
        builder = configs.resolve_builder(DATA[options.pop("source")])
        if options.get("path") == "":
            options["path"] = _embedded_corpus(workdir)
        made = builder(tokens, str(files.path(workdir) / "rows" / name), **options)
        if "rows" in (config.objective.get("reference"), config.objective.get("teacher")):
            from llm.posttrain import reference

            made = reference.add_known(config, made, start, vocab_size)
        found[name] = made
    index, count = shards.host_share(sharding.make_mesh(dict(config.mesh)))
    feed = mixing.make_feed(
        {name: splits["train"] for name, splits in found.items()},
        config.data,
        steps=int(config.train.steps),
        seed=int(config.seed),
        batch_size=int(config.train.batch_size),
        host_index=index,
        host_count=count,
    )
    feed.require(int(config.train.steps))
    held_out = {}
    for name, splits in found.items():
        for split, dataset in splits.items():
            if split != "train":
                held_out[split if len(found) == 1 else f"{name}/{split}"] = dataset
    return _corrupt(config, tokens, vocab_size, feed, held_out)


def _answers(
    config: Any, workdir: str, start: Any, model: Any, objective: Any
) -> tuple[Any, dict[str, Any]]:
    """Return the source of the model's own answers, and the held-out questions.

    Raises:
        ConfigError: there is no model to start from, which is the reference of rollouts too.
    """
    from llm.core import sharding, shards
    from llm.core.lines import Lines
    from llm.posttrain import own_answers, rollout

    if start is None:
        raise ConfigError(
            f"config.objective.name={config.objective.name!r} goes on from a model.",
            "Give --config.init.from=<workdir of a tuned run>.",
        )
    options = _prompt_options(config)
    if options.get("path") == "":
        options["path"] = _embedded_corpus(workdir)
    splits = configs.resolve_builder(PROMPTS[config.data.source])(**options)
    sizes: dict[str, Any] = {
        "batch_size": int(config.train.batch_size),
        "length": int(config.data.length),
        "seed": int(config.seed),
        "share": shards.host_share(sharding.make_mesh(dict(config.mesh))),
    }
    held_out = {name: tasks for name, tasks in splits.items() if name != "train"}
    if config.objective.name in TAUGHT:
        settings = own_answers.check(config.answers)
        own = own_answers.OwnAnswers(settings, splits["train"], start, model, **sizes)
        return own, {k: own_answers.HeldOut(own, v, objective) for k, v in held_out.items()}
    import jax

    if jax.process_index() == 0:
        sizes["record"] = Lines(files.path(workdir) / "rollouts.jsonl").append
    rules = rollout.check(config.rollout)
    rollouts = rollout.Rollouts(rules, splits["train"], start, model, **sizes)
    return rollouts, {k: rollout.HeldOut(rollouts, v) for k, v in held_out.items()}


def _corrupt(
    config: Any, tokens: Any, vocab_size: int, feed: Any, held_out: dict[str, Any]
) -> tuple[Any, Any]:
    """Put the noise of config.data.corruption, if there is any, between rows and training."""
    section = config.data.get("corruption", {})
    if not section:
        return feed, held_out
    from llm.pretrain import denoise

    builder = configs.resolve_builder(configs.choose(section["name"], CORRUPTIONS, "corruption"))
    options = configs.bind(builder, section, "data.corruption", given=_GIVEN)
    options = {"seed": int(config.seed), **options}
    transform = builder(tokens, length=int(config.data.length), vocab_size=vocab_size, **options)
    splits = {name: denoise.CorruptedRows(rows, transform) for name, rows in held_out.items()}
    return denoise.CorruptedFeed(feed, transform, {"name": section["name"], **options}), splits


def _embedded_corpus(workdir: str) -> str:
    """Make a small corpus from installed documentation, once."""
    from pathlib import Path

    target = files.path(workdir) / "corpus"
    if not (target / "documents" / "manifest.json").exists():
        print("config.data.path is empty: building a small corpus from installed documentation")
        source = Path(__file__).resolve().parents[1] / "configs" / EMBEDDED_CORPUS
        corpus(configs.load_file(str(source)), str(target))
    return str(target)
