# SPDX-License-Identifier: Apache-2.0
"""Start a stage from the command line: options, config, errors as exit codes.

Nothing here imports JAX, so a wrong command is refused at once.
"""

import ast
import importlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from llm.core import heap, peers, signals
from llm.core.redact import Redacting, redact
from llm.errors import ConfigError, UserError

USAGE = """usage: python scripts/{stage}.py --config=configs/{stage}/<name>.py [--config.<field>=…]
       [--workdir=DIR] [--print_config] [--distributed] [--debug] [--help]{extra}
"""

OPTIONS = {
    "workdir": "",
    "print_config": "false",
    "distributed": "false",
    "debug": "false",
    "help": "false",
}

_RESUMABLE = ("pretrain", "posttrain")  # stages that a launcher starts again after exit code 75


def run(stage: str, extra: dict[str, str] | None = None) -> None:
    """Run `llm.main.<stage>(config, workdir, **extra options)` and exit with its code.

    Args:
        stage: the function of `llm.main` to call, also the folder of its configs.
        extra: the stage's own options with their defaults ("false" makes a switch).
    """
    if not {"--help", "-h", "--print_config"}.intersection(sys.argv):
        heap.use_huge_pages()
    code = main(stage, sys.argv[1:], extra or {})
    peers.leave(code)
    sys.exit(code)


def main(stage: str, argv: Sequence[str], extra: dict[str, str]) -> int:
    """Parse, check and run; return the exit code (see llm.errors)."""
    debug = "--debug" in argv
    try:
        with signals.until_ready(stage in _RESUMABLE):
            return _main(stage, argv, extra)
    except UserError as error:
        if debug:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
        first, *rest = redact(str(error)).splitlines()
        print(f"error: {first}", *(f"  {line}" for line in rest[:3]), sep="\n", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except Exception as error:
        peers.blame(error)
        if debug:
            print(redact(traceback.format_exc()), end="", file=sys.stderr)
            return 1
        lines = redact(str(error)).strip().splitlines() or [""]
        print(f"error: {type(error).__name__}: {lines[0][:300]}", file=sys.stderr)
        print("  Run again with --debug for the traceback.", file=sys.stderr)
        return 1


def _main(stage: str, argv: Sequence[str], extra: dict[str, str]) -> int:
    from llm.core import config as configs

    options = {**OPTIONS, **extra}
    if "--help" in argv or "-h" in argv:
        try:
            return _help(stage, argv, options)
        except BrokenPipeError:  # whoever reads, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    call = configs.parse(argv, options)
    if call.options["print_config"] == "true":
        print(json.dumps(configs.to_dict(call.config), indent=1, default=str))
        return 0
    workdir = call.options["workdir"] or f"runs/{stage}_{Path(call.config_path).stem}"
    together = call.options["distributed"] == "true"
    if together:
        peers.capture(workdir)
    quiet()
    if together:
        peers.join(float(call.config.get("train", {}).get("heartbeat", peers.HEARTBEAT)))
    function = getattr(importlib.import_module("llm.main"), stage)
    try:
        function(call.config, workdir, **{k: call.options[k] for k in extra})
    except (AttributeError, KeyError) as error:
        if name := configs.lacking(error):
            raise ConfigError(
                f"{call.config_path} has no setting {name!r} where {stage} needs it.",
                f"See how those in configs/{stage}/ set it; --debug says where it was asked for.",
            ) from error
        raise
    return 0


def _help(stage: str, argv: Sequence[str], options: dict[str, str]) -> int:
    from llm.core import config as configs

    own = "".join(f" [--{name}]" for name in options if name not in OPTIONS)
    print(USAGE.format(stage=stage, extra=own))
    given = [a for a in argv if a not in ("--help", "-h")]
    try:
        call = configs.parse(given, options)
    except ConfigError as error:
        if any(a.startswith("--config") for a in given):
            raise
        found = sorted(Path("configs", stage).glob("*.py"))
        print("configs:", *(f"  {path}" for path in found), sep="\n")
        print(f"\n{error.fix} With it, --help lists every field.")
        return 0
    document = ast.get_docstring(ast.parse(Path(call.config_path).read_text("utf-8")))
    if document:
        print(f"{document}\n")
    print(f"fields of {call.config_path}:\n{configs.describe(call.config)}")
    return 0


def quiet() -> None:
    """Keep libraries' chatter off the terminal; warnings of our own still show."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    handler = logging.StreamHandler()
    handler.setFormatter(Redacting("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)


def require_platform(expected: str) -> None:
    """Refuse a silent fall-back to another platform ("" accepts any).

    Raises:
        ConfigError: JAX runs elsewhere than the config says.
    """
    import jax

    if expected and jax.default_backend() != expected:
        raise ConfigError(
            f"config.platform={expected}, but JAX runs on {jax.default_backend()}.",
            "Check the driver, or that no other process holds the device.",
        )
