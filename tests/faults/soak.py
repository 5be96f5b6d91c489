# SPDX-License-Identifier: Apache-2.0
"""Random campaigns: a fault at a random moment of a real run, resumption, comparison.

    python scripts/soak.py --runs=20 --seed=1 [--workdir=DIR]

Every run must end with the parameters of the undisturbed run, bit by bit, and each start must have
read the same examples at the same steps. A campaign that is stopped goes on where it was when the
same command is given again; its records are in `campaign.jsonl`.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from llm.core import checkpoint
from llm.core.metrics import read_lines
from tests import runs

STARTS = 6  # a run that needs more has not recovered
KILLS = 10  # of a run that is killed again and again
CONFIG = "tests/faults/faulty.py"


class Run:
    """One run of a campaign: its folder, its random numbers and what its starts returned."""

    def __init__(self, root, name, data, rng):
        self.workdir, self.root, self.data, self.rng = root / name, root, data, rng
        self.codes, self.output = [], ""
        self.cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(root / "cache")
        self.moment = rng.randint(2, runs.STEPS - 4)

    def start(self, **variables):
        self.workdir.mkdir(parents=True, exist_ok=True)
        return runs.start(
            self.workdir,
            self.data,
            "--config.train.log_every=1",
            config=CONFIG,
            EXAMPLES=str(self.workdir / "examples.txt"),
            JAX_COMPILATION_CACHE_DIR=self.cache,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2",
            **variables,
        )[0]

    def until(self, process):
        """Wait for the random moment."""
        runs.wait_for_step(self.workdir, self.moment, process)
        time.sleep(self.rng.random() * 0.1)

    def end(self, process):
        code, self.output = runs.finish(process)
        self.codes.append(code)

    def kill(self):
        """Start, and kill at the random moment."""
        process = self.start()
        self.until(process)
        process.kill()
        self.end(process)

    def newest(self):
        """Return the files of the newest of several checkpoints."""
        steps = checkpoint.list_steps(str(self.workdir / "checkpoints"))
        if len(steps) < 2:  # the only checkpoint damaged: the run must refuse, not recover
            return []
        newest = self.workdir / "checkpoints" / str(steps[-1])
        return sorted(p for p in newest.rglob("*") if p.is_file())


def kill(run):
    run.kill()


def kill_again(run):
    """Killed at ten random steps, each time in the middle of what the next start does."""
    for moment in sorted(run.rng.sample(range(2, runs.STEPS - 3), KILLS)):
        run.moment = moment
        run.kill()


def kill_at_start(run):
    process = run.start()
    time.sleep(run.rng.uniform(0.2, 6))
    process.kill()
    run.end(process)


def kill_in_a_save(run):
    process = run.start()
    run.until(process)
    folder, end = run.workdir / "checkpoints", time.monotonic() + 5
    while process.poll() is None and not list(folder.glob(".*ing-*")) and time.monotonic() < end:
        time.sleep(0.001)
    process.kill()
    run.end(process)


def terminate(run):
    process = run.start()
    run.until(process)
    process.send_signal(signal.SIGTERM)
    run.end(process)


def interrupt_twice(run):
    process = run.start()
    run.until(process)
    process.send_signal(signal.SIGINT)
    time.sleep(run.rng.uniform(0.0, 1.0))
    process.send_signal(signal.SIGINT)
    run.end(process)


def freeze_and_thaw(run):
    process = run.start()
    run.until(process)
    process.send_signal(signal.SIGSTOP)
    time.sleep(1)
    process.send_signal(signal.SIGCONT)
    run.end(process)


def damage(harm):
    """Return a fault: killed, and then one file of the newest checkpoint is damaged."""

    def fault(run):
        run.moment = max(run.moment, 12)
        run.kill()
        if found := run.newest():
            harm(run.rng.choice(found), run.rng)

    return fault


def flip(file, rng):
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def truncate(file, rng):
    file.write_bytes(file.read_bytes()[: rng.randrange(file.stat().st_size)])


def strangers(run):
    """Killed; then an empty step folder, a leftover of a save and a foreign file lie around."""
    run.kill()
    (run.workdir / "checkpoints" / "999").mkdir(parents=True)
    (run.workdir / "checkpoints" / ".saving-998-1").mkdir()
    (run.workdir / "checkpoints" / "notes.txt").write_text("hello")


def torn_metrics(run):
    run.kill()
    file = run.workdir / "metrics.jsonl"
    file.write_bytes(file.read_bytes()[: -run.rng.randrange(1, 30)])


def clock(run):
    run.end(run.start(FAULT=f"clock:{run.moment}"))


def bad_cache(run):
    run.cache = str(run.workdir / "cache")
    run.kill()
    for file in Path(run.cache).iterdir():
        if file.is_file() and file.stat().st_size:
            flip(file, run.rng)


FAULTS = {
    "kill": kill,
    "kill ten times": kill_again,
    "kill at start": kill_at_start,
    "kill in a save": kill_in_a_save,
    "SIGTERM": terminate,
    "Ctrl-C twice": interrupt_twice,
    "freeze and thaw": freeze_and_thaw,
    "flipped byte": damage(flip),
    "truncated file": damage(truncate),
    "emptied file": damage(lambda file, rng: file.write_bytes(b"")),
    "deleted file": damage(lambda file, rng: file.unlink()),
    "strangers": strangers,
    "torn metrics": torn_metrics,
    "clock jump": clock,
    "damaged compile cache": bad_cache,
}


def params_hash(workdir):
    """Hash the names and the bits of the newest verified parameters."""
    restored = checkpoint.restore(str(workdir / "checkpoints"), entries=("params",))
    digest = hashlib.blake2b(str(restored.step).encode())
    for path, leaf in jax.tree_util.tree_leaves_with_path(restored.tree):
        digest.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()[:32]


def examples(workdir):
    """Return step -> the hashes of all batches that were read for it."""
    found = collections.defaultdict(set)
    for line in (workdir / "examples.txt").read_text().splitlines():
        step, _, digest = line.partition(" ")
        found[int(step)].add(digest)
    return found


def reference(root, data):
    """Return parameters and examples of the undisturbed run, made at the first start."""
    run = Run(root, "reference", data, random.Random(0))
    if not (root / "reference.done").exists():
        shutil.rmtree(run.workdir, ignore_errors=True)
        run.end(run.start())
        if run.codes != [0]:
            sys.exit(f"the undisturbed run failed:\n{run.output}")
        (root / "reference.done").touch()
    return params_hash(run.workdir), examples(run.workdir)


def problem(run, wanted):
    """Say what is wrong with a recovered run, or nothing."""
    if run.codes[-1] != 0:
        return f"not recovered, codes {run.codes}: {run.output[-300:]}"
    if params_hash(run.workdir) != wanted[0]:
        return "other parameters"
    read = examples(run.workdir)
    wrong = [step for step in range(runs.STEPS) if read[step] != wanted[1][step]]
    lines = read_lines(run.workdir / "metrics.jsonl")
    logged = sorted(line["step"] for line in lines if "train/loss" in line)
    if logged != list(range(1, runs.STEPS + 1)) and run.codes != [0]:
        return f"{runs.STEPS} steps were made, {len(logged)} are logged"
    return f"other examples at steps {wrong}" if wrong else ""


def one(root, number, seed, data, wanted, names):
    """Do one run of the campaign and return its record."""
    rng = random.Random(f"{seed}-{number}")
    name = rng.choice(names)
    run = Run(root, f"run-{seed}-{number}", data, rng)
    shutil.rmtree(run.workdir, ignore_errors=True)
    began = time.monotonic()
    FAULTS[name](run)
    for _ in range(STARTS):
        if run.codes[-1] != 0:
            run.end(run.start())
    wrong = problem(run, wanted)
    if not wrong:
        shutil.rmtree(run.workdir)
    return {
        "run": number,
        "seed": seed,
        "fault": name,
        "moment": run.moment,
        "codes": run.codes,
        "seconds": round(time.monotonic() - began, 1),
        "problem": wrong,
    }


def campaign(root, count, seed, names=tuple(FAULTS), say=print):
    """Do what is left of a campaign; return all its records."""
    root.mkdir(parents=True, exist_ok=True)
    data, log = root / "docs.jsonl", root / "campaign.jsonl"
    if not data.exists():
        runs.write_documents(data)
    records = [r for r in read_lines(log) if r["seed"] == seed and r["run"] < count]
    wanted = reference(root, data)
    for number in sorted(set(range(count)) - {r["run"] for r in records}):
        record = one(root, number, seed, data, wanted, names)
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        records.append(record)
        say(
            f"run {number}: {record['fault']} at step {record['moment']}, "
            f"codes {record['codes']}: {record['problem'] or 'same bits, same examples'}"
        )
    return records


def table(records):
    """Return the campaign as lines: per fault how many runs, how many recovered, exit codes."""
    lines = [f"{'fault':<24}{'runs':>6}{'right':>7}  first exit codes"]
    for name in [*FAULTS, "all"]:
        found = [r for r in records if name in (r["fault"], "all")]
        if found:
            right = sum(not r["problem"] for r in found)
            codes = collections.Counter(r["codes"][0] for r in found)
            shown = ", ".join(f"{code} ({n})" for code, n in sorted(codes.items()))
            lines.append(f"{name:<24}{len(found):>6}{right:>7}  {shown}")
    return lines


def main(argv):
    """Read the command line, run the campaign, print its table; 1 if a run was not right."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/soak"))
    parser.add_argument("--faults", nargs="*", choices=list(FAULTS), default=list(FAULTS))
    options = parser.parse_args(argv)
    try:
        records = campaign(options.workdir.absolute(), options.runs, options.seed, options.faults)
    except (KeyboardInterrupt, subprocess.TimeoutExpired) as error:
        print(f"stopped ({type(error).__name__}); the same command goes on", file=sys.stderr)
        return 130
    print(*table(records), sep="\n")
    return int(any(record["problem"] for record in records))
