# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts: enter the repository and a virtual environment with the package;
# defines `stage`.
# usage: source scripts/environment.sh EXTRA

cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${VIRTUAL_ENV:-}" ] && [ -z "${CONDA_PREFIX:-}" ]; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "error: Python 3.11 or newer is needed, $("$python" --version) is here." >&2
    echo "  Set PYTHON=/path/to/python3.11 and run again." >&2
    exit 2
  }
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  source .venv/bin/activate
fi

# Install once per set of requirements; the mark holds their hash.
wanted="$1 $(cat setup.py constraints.txt | cksum)"
mark="$(python -c 'import sys; print(sys.prefix)')/jax-llm-$1"
if [ "$(cat "$mark" 2>/dev/null)" != "$wanted" ]; then
  echo "installing jax-llm[$1]"
  if ! log=$(python -m pip install --quiet -c constraints.txt -e ".[$1]" 2>&1); then
    printf '%s\nerror: the installation failed; see above.\n' "$log" >&2
    exit 2
  fi
  echo "$wanted" >"$mark"
fi

stage() { # stage NAME WORDS… : show the command, run it, say how long it took
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n$ %s\n' "$name" "$*"
  "$@"
  printf '   (%s: %d s)\n' "$name" $((SECONDS - start))
}
