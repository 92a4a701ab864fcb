#!/bin/sh
# The host of "make demo", wherever the lab has put it.
cd "$(dirname "$0")/../.." || exit
exec .venv/bin/python molecule/_lab/lab.py inventory @demo --list
