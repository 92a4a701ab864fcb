#!/bin/bash
# Runs the tests of app/ that are marked so with the oldest Celery, kombu and redis-py that it takes.
#
#   tools/oldest.sh [PYTEST OPTION...]
#
# They are installed in .cache/oldest, from app/tests/oldest.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.cache/oldest
stamp=$(.venv/bin/python --version && sha256sum app/tests/oldest.txt)

uv=(.venv/bin/uv --quiet --no-progress)
if [[ ! -f $venv/stamp || $stamp != "$(<"$venv/stamp")" ]]; then
  rm -rf "$venv"
  "${uv[@]}" venv --no-project --python .venv/bin/python "$venv"
  # uv takes seconds, pip half a minute; but uv does not read pip's configuration. Workers in tests
  # write no bytecode: without it each would compile what it loads.
  "${uv[@]}" pip install --python "$venv/bin/python" --compile-bytecode --require-hashes \
    --requirement app/tests/oldest.txt ||
    .venv/bin/python -m pip --quiet --disable-pip-version-check --python "$venv/bin/python" \
      install --require-hashes --requirement app/tests/oldest.txt
  echo "$stamp" >"$venv/stamp"
fi
exec "$venv/bin/python" -m pytest --quiet -p no:cacheprovider -m oldest "$@" app/tests
