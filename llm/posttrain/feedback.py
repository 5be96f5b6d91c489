# SPDX-License-Identifier: Apache-2.0
"""The feedback stage: a model makes training data, and models or rules judge it.

A maker turns prompts into records, a few at a time; each is on disk before the next are begun, so
that a killed run goes on where it was. What it makes of a prompt depends on the prompt and the
seed alone. At the end the records become what other stages read.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llm import files
from llm.core import config as configs
from llm.core import launch, lock
from llm.core.lines import Lines
from llm.data import sources
from llm.errors import ConfigError, DataError
from llm.posttrain import formats

# config.maker.name: (Setting, **section) -> Maker
MAKERS = {
    "best_of": "llm.posttrain.makers:best_of",
    "judge": "llm.posttrain.makers:judge",
    "revise": "llm.posttrain.makers:revise",
    "refusals": "llm.posttrain.makers:refusals",
}

Record = dict[str, Any]


class Prompt(NamedTuple):
    """What is asked.

    Attributes:
        id: hash of the messages (and of the answers to judge).
        messages: of the chat so far.
        answer: the expected one, where the file has it, else None.
        pair: a preference pair's (chosen, rejected), else None.
    """

    id: str
    messages: list[dict[str, str]]
    answer: str | None = None
    pair: tuple[str, str] | None = None


class Setting(NamedTuple):
    """What makers work with.

    Attributes:
        lm: the model that writes, or None.
        seed: of everything drawn.
        sampling: options of `lm.generate`.
        model: name of the model's file or folder and a hash of its weights, "" without a model.
    """

    lm: Any
    seed: int
    sampling: dict[str, Any]
    model: str = ""

    def write(self, prompts: Sequence[Any], keys: Sequence[str], **more: Any) -> list[str]:
        """Return a text for each chat; the draw depends on the chat, its key and the seed alone."""
        seeds = [int(files.hash_json([self.seed, key])[:8], 16) for key in keys]
        found = self.lm.generate(list(prompts), seed=seeds, **{**self.sampling, **more})
        return [text.strip() for text in found]


class Maker(NamedTuple):
    """A way to make data.

    Attributes:
        prompts: (path, limit) -> what to work on.
        make: some prompts -> a record of each, in their order.
        outputs: file name -> (record -> its lines).
        metrics: all records -> {"n", "metrics"}.
    """

    prompts: Callable[[str, int], list[Prompt]]
    make: Callable[[Sequence[Prompt]], list[Record]]
    outputs: Mapping[str, Callable[[Record], Iterable[Record]]]
    metrics: Callable[[Sequence[Record]], Mapping[str, Any]]


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Make data.

    Args:
        config: `model` (writes; "" where the maker needs none), `dtype`, `path` (JSONL of
            prompts), `limit`, `seed`, `chunk` (prompts between two saves), `sampling` and
            `maker` {"name", …}.
        workdir: receives records.jsonl (everything, as it comes), the maker's outputs and
            results.json.

    Raises:
        ConfigError: a wrong setting.
        DataError: no prompt, or the workdir holds records of other settings.
    """
    name = configs.choose(config.maker.name, MAKERS, "maker")
    builder = configs.resolve_builder(name)
    section = configs.bind(builder, config.maker, "maker", given=("setting",))
    if config.chunk < 1:
        raise ConfigError(f"config.chunk={config.chunk}.", "Give at least 1 prompt.")
    launch.require_platform(config.platform)
    with lock.hold(workdir):
        lm = _load(config)
        model = _name(config.model, lm)
        setting = Setting(lm, int(config.seed), dict(config.sampling), model)
        maker = builder(setting, **section)
        prompts = maker.prompts(config.path, int(config.limit))
        if not prompts:
            raise DataError("There is no prompt.", "Give --config.path=<JSONL of prompts>.")
        free = ("limit", "chunk", "path", "platform")
        require_same_settings({**configs.to_dict(config), "model": model}, workdir, free)
        records = _make(maker, prompts, workdir, int(config.chunk))
        return _finish(maker, records, {"task": config.maker.name, "model": model}, workdir)


def _load(config: Any) -> Any:
    if not config.model:
        return None
    from llm.generate.language_model import load

    return load(config.model, dtype=config.dtype)


def _name(source: str, lm: Any) -> str:
    if lm is None:
        return ""
    from llm.core import fingerprint, trees

    weights = fingerprint.fingerprint(trees.flatten(lm.params))
    return f"{os.path.basename(source.rstrip('/'))}@{weights[:16]}"


def require_same_settings(now: Record, workdir: str, free: Sequence[str]) -> None:
    """Refuse to go on with what other settings or another model made; keep the settings.

    Args:
        now: the settings.
        workdir: whose config.json has those of its beginning.
        free: settings that may change.

    Raises:
        DataError: another setting changed.
    """
    place = files.path(workdir) / "config.json"
    if place.exists():
        before = files.read_json(place)
        shared = {k: v for k, v in files.parse_json(json.dumps(now)).items() if k not in free}
        changed = [key for key, value in shared.items() if before.get(key) != value]
        if changed:
            raise DataError(
                f"{workdir} was begun with another {', '.join(changed)}.",
                "Choose another --workdir, or the earlier settings.",
            )
    files.write_json(place, now)


def _make(maker: Maker, prompts: Sequence[Prompt], workdir: str, chunk: int) -> list[Record]:
    """Make what is missing; return the records in the prompts' order."""
    log = Lines(files.path(workdir) / "records.jsonl", durable=True)
    known = {}
    for line in log.read().split("\n"):
        try:
            record = files.parse_json(line)
            known[record["id"]] = record
        except (ValueError, KeyError, TypeError):
            continue  # torn by a kill: made again
    missing = [prompt for prompt in prompts if prompt.id not in known]
    if known:
        print(f"going on: {len(prompts) - len(missing)} of {len(prompts)} prompts are done")
    for start in range(0, len(missing), chunk):
        part = missing[start : start + chunk]
        for prompt, made in zip(part, maker.make(part), strict=True):
            record = {"id": prompt.id, "prompt": prompt.messages, **made}
            log.append(json.dumps(record))
            known[prompt.id] = files.parse_json(json.dumps(record))
    return [known[prompt.id] for prompt in prompts]


def _finish(maker: Maker, records: Sequence[Record], head: Record, workdir: str) -> Record:
    counts = {}
    for file, lines in maker.outputs.items():
        made = [json.dumps(one, ensure_ascii=False) for record in records for one in lines(record)]
        text = "".join(f"{line}\n" for line in made)
        files.write_atomic(files.path(workdir) / file, text.encode("utf-8", "replace"))
        counts[file] = len(made)
        print(f"{len(made)} lines in {workdir}/{file}")
    result = {**head, "written": counts, **maker.metrics(records)}
    files.write_json(files.path(workdir) / "results.json", [result])
    for metric, entry in result["metrics"].items():
        interval = entry.get("interval")
        shown = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
        print(f"  {metric}: {entry['value']:.3f}{shown}  (n = {result['n']})")
    return result


def read_prompts(path: str, limit: int = 0, pairs: bool = False) -> list[Prompt]:
    """Read prompts, each once: of chats, preference pairs, tasks or any format of `formats`.

    Args:
        path: JSONL.
        limit: prompts at most; 0 for all.
        pairs: keep the two answers of preference pairs.

    Raises:
        DataError: the file is missing, or a record has no prompt.
    """
    found: dict[str, Prompt] = {}
    for number, record in enumerate(formats.convert(sources.read(path)), 1):
        prompt = _prompt(record, f"{path}, record {number}", pairs)
        found.setdefault(prompt.id, prompt)
        if limit and len(found) == limit:
            break
    return list(found.values())


def _prompt(record: Record, where: str, pairs: bool) -> Prompt:
    messages, answer = record.get("prompt"), record.get("answer")
    if "messages" in record:
        messages = list(record["messages"])
        if messages and messages[-1].get("role") == "assistant":
            answer = messages.pop()["content"]
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not messages:
        raise DataError(f"{where} has no prompt.", 'Write {"prompt": …} or {"messages": […]}.')
    if not pairs:
        return Prompt(files.hash_json(messages), messages, None if answer is None else str(answer))
    sides = [_text(record.get(side)) for side in ("chosen", "rejected")]
    if not all(isinstance(side, str) for side in sides):
        raise DataError(f"{where} is no preference pair.", 'Write {"prompt","chosen","rejected"}.')
    return Prompt(files.hash_json([messages, sides]), messages, None, (sides[0], sides[1]))


def _text(side: Any) -> Any:
    """Return an answer's text where it is a list of one message."""
    return side[0].get("content") if isinstance(side, list) and len(side) == 1 else side


def said(text: str) -> list[dict[str, str]]:
    """Return an answer as the messages that preference files hold."""
    return [{"role": "assistant", "content": text}]
