#!/bin/bash
# Removes what this checkout has made on this machine: its test hosts, .venv and caches.
# The base systems stay: other checkouts use them, too (/var/cache/celery-metal-lab).
set -euo pipefail
cd "$(dirname "$0")/.."

if (($#)); then
  # Ansible runs what is executable in an inventory that is a directory, with --list.
  echo "clean.sh: takes no arguments: $*. Nothing was removed." >&2
  exit 2
fi

if [[ -x .venv/bin/python ]]; then
  .venv/bin/python molecule/_lab/lab.py down
elif [[ -d /var/lib/celery-metal-lab ]]; then
  echo "clean: no .venv, so the test hosts cannot be removed: run tools/bootstrap.sh first" >&2
  exit 1
fi
rm -rf .venv .cache .ansible .hypothesis .pytest_cache .ruff_cache
find . -name __pycache__ -prune -exec rm -rf {} +
