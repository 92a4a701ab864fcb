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

if [[ ! -f $venv/stamp || $stamp != "$(<"$venv/stamp")" ]]; then
  rm -rf "$venv"
  .venv/bin/python -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes \
    --requirement app/tests/oldest.txt
  echo "$stamp" >"$venv/stamp"
fi
exec "$venv/bin/python" -m pytest --quiet -p no:cacheprovider -m oldest "$@" app/tests
