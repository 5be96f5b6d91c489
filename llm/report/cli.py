# SPDX-License-Identifier: Apache-2.0
"""Write the joint report and the model card of stages whose folders lie side by side."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llm.errors import DataError, UserError
from llm.report.life import life_report
from llm.report.model_card import write_model_card

# Stage -> the folder names it may have, as scripts/quickstart.sh makes them
FOLDERS = {
    "corpus": ("corpus",),
    "tokenizer": ("tokenizer",),
    "pretrain": ("pretrain",),
    "sft": ("sft",),
    "dpo": ("dpo",),
    "grpo": ("grpo",),
    "eval": ("eval",),
    "compress": ("compress", "int8"),
    "serve": ("serve",),
}
TRAINING = ("pretrain", "sft", "dpo", "grpo")


def find_stages(runs: Path) -> dict[str, Path]:
    """Return the stage folders in `runs`, in order.

    Raises:
        DataError: there is none.
    """
    found = {
        stage: runs / name
        for stage, names in FOLDERS.items()
        for name in names
        if (runs / name).is_dir()
    }
    if not found:
        known = ", ".join(name for names in FOLDERS.values() for name in names)
        raise DataError(f"{runs} holds no stage folder.", f"Expected some of: {known}.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Read --runs, write report.html and MODEL_CARD.md there, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", required=True, help="folder of the stages' folders")
    options = parser.parse_args(argv)
    runs = Path(options.runs)
    try:
        stages = find_stages(runs)
        page = life_report(stages, runs / "report.html")
        training = [stages[name] for name in TRAINING if name in stages]
        card = training and write_model_card(
            runs / "MODEL_CARD.md",
            name=runs.name,
            training=training,
            evaluation=stages.get("eval", ""),
            compression=stages.get("compress", ""),
            corpus=stages.get("corpus", ""),
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"report: {page}")
    if card:
        print(f"model card: {card}")
    return 0
