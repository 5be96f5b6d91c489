#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The whole life of a small model, from documents to answers over HTTP: bash scripts/quickstart.sh
# Needs python3 >= 3.11 and two CPU cores; offline once installed. Results go to runs/quickstart
# (set RUNS to choose another folder). Run again: finished stages say so, a stopped one resumes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh" quickstart

RUNS=${RUNS:-runs/quickstart}
export HF_HUB_OFFLINE=1 JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}
begin=$SECONDS

stage corpus python scripts/corpus.py --config=configs/corpus/quickstart.py \
  --workdir="$RUNS/corpus"
stage tokenizer python scripts/tokenizer.py --config=configs/tokenizer/tiny.py \
  --config.data.path="$RUNS/corpus" --workdir="$RUNS/tokenizer"
stage pretrain python scripts/pretrain.py --config=configs/pretrain/quickstart.py \
  --config.data.path="$RUNS/corpus" --config.tokenizer.path="$RUNS/tokenizer" \
  --workdir="$RUNS/pretrain"
stage sft python scripts/posttrain.py --config=configs/posttrain/tiny.py \
  --config.data.path="$RUNS/corpus" --config.init.from="$RUNS/pretrain" --workdir="$RUNS/sft"
stage dpo python scripts/posttrain.py --config=configs/posttrain/dpo.py \
  --config.data.path="$RUNS/corpus" --config.init.from="$RUNS/sft" --workdir="$RUNS/dpo"
stage grpo python scripts/posttrain.py --config=configs/posttrain/grpo.py \
  --config.data.path="$RUNS/corpus" --config.init.from="$RUNS/dpo" --workdir="$RUNS/grpo"
stage eval python scripts/eval.py --config=configs/eval/tiny.py --config.model="$RUNS/dpo" \
  --config.corpus="$RUNS/corpus" --config.pretrain="$RUNS/pretrain" --workdir="$RUNS/eval"
stage compress python scripts/compress.py --config=configs/compress/tiny.py \
  --config.model="$RUNS/dpo" --config.measure.documents="$RUNS/corpus" --workdir="$RUNS/int8"
answer_once() { # start the server, ask it one question, stop it
  rm -f "$RUNS/serve/server.json"
  python scripts/serve.py --config=configs/serve/tiny.py --config.model="$RUNS/int8" \
    --config.serve.port=0 --workdir="$RUNS/serve" &
  local server=$!
  python scripts/ask.py --workdir="$RUNS/serve" --question="$1" || { kill $server; return 1; }
  kill $server
  wait $server
}
stage serve answer_once 'What does `os.path.join(path, *paths)` do?'
stage report python scripts/report.py --runs="$RUNS"

printf '\nDone in %d s. Open %s/report.html\n' $((SECONDS - begin)) "$RUNS"
