#!/bin/bash
# Makes this checkout ready for work: the lab's system packages, and .venv from requirements.lock.
#
#   tools/bootstrap.sh          both; done in an instant when nothing has changed
#   tools/bootstrap.sh --lab    and the base system that the lab's hosts are made of
#   tools/bootstrap.sh --venv   only .venv: for a controller without a lab; needs no root
set -euo pipefail
cd "$(dirname "$0")/.."

lab_packages=(
  debian-archive-keyring # checks what the base system is made of
  git # the unit tests of the role image clone repositories
  iproute2 # bridges and cables
  mmdebstrap # builds the base system
  nftables # lets the hosts reach the outside
  openssh-client
  openssl # for the unit tests, which make certificates of their own
  redis-server # for the unit tests of app/, which start one of their own
  systemd-container # systemd-nspawn
  util-linux # taskset
)

say() { echo "bootstrap: $*" >&2; }
fail() {
  say "$@"
  exit 1
}

# Runs a step and says what it was if it took long. Its output is shown only if it fails.
step() {
  local what=$1 started=$SECONDS log
  shift
  log=$(mktemp)
  say "$what ..."
  if ! "$@" >"$log" 2>&1; then
    cat "$log" >&2
    rm -f "$log"
    fail "$what: failed after $((SECONDS - started)) s"
  fi
  rm -f "$log"
  say "$what: done in $((SECONDS - started)) s"
}

missing_packages() {
  local name
  for name in "${lab_packages[@]}"; do
    # dpkg-query fails for a package it has never heard of; that is an answer here, too.
    if [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$name" 2>/dev/null) != installed ]]; then
      echo "$name"
    fi
  done
}

# Runs apt-get so that it starts no services: only the programs are wanted.
without_starting() {
  local policy=/usr/sbin/policy-rc.d status=0
  if [[ -e $policy ]]; then
    "$@"
    return
  fi
  printf '#!/bin/sh\nexit 101\n' >"$policy"
  chmod 755 "$policy"
  "$@" || status=$?
  rm "$policy"
  return "$status"
}

install_packages() {
  local missing
  mapfile -t missing < <(missing_packages)
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || fail "run as root, or install yourself: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  step "apt-get update" apt-get update
  step "installing ${missing[*]}" without_starting \
    apt-get install --yes --no-install-recommends "${missing[@]}"
}

# A candidate is taken when it runs: pyenv's shims exist, but refuse when their version is not chosen.
usable() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' 2>/dev/null
}

# Debian splits venv from Python; with root and apt that is no reason to stop.
complete_python() {
  local probe='import sys; sys.exit(sys.version_info < (3, 12))'
  if ! (find_python) >/dev/null 2>&1 && ((EUID == 0)) && command -v apt-get >/dev/null &&
    /usr/bin/python3 -c "$probe" 2>/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    step "apt-get update" apt-get update
    step "installing python3-venv" apt-get install --yes --no-install-recommends python3-venv
  fi
}

find_python() {
  local candidate
  for candidate in python3.14 python3.13 python3.12 python3 \
    $(compgen -G "$HOME/.pyenv/versions/3.*/bin/python3" | sort --version-sort --reverse); do
    if command -v "$candidate" >/dev/null && usable "$candidate"; then
      "$candidate" -c 'import os, sys; print(os.path.realpath(sys.executable))'
      return
    fi
  done
  if command -v uv >/dev/null && candidate=$(uv python find '>=3.12' 2>/dev/null) &&
    usable "$candidate"; then
    echo "$candidate"
    return
  fi
  say "no Python 3.12 or later with the venv module was found; looked for"
  say "  python3.14, python3.13, python3.12 and python3 on PATH,"
  say "  $HOME/.pyenv/versions/3.*/bin/python3, and what 'uv python find' finds."
  fail "Install one, for example: apt-get install python3 python3-venv (Debian 13)"
}

make_venv() {
  rm -rf .venv
  "$1" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
    --requirement requirements.lock
}

# What .venv was made from. An interpreter that has been removed since fails to print its version.
venv_stamp() {
  .venv/bin/python --version 2>/dev/null && sha256sum requirements.lock
}

install_venv() {
  local python
  # Two at once in one checkout take turns; the second finds the work done.
  exec 9<requirements.lock
  flock 9
  if [[ -f .venv/stamp ]] && [[ $(venv_stamp) == "$(<.venv/stamp)" ]]; then
    return
  fi
  python=$(find_python)
  step "installing Ansible and its tools in .venv with $python (about 40 s)" make_venv "$python"
  venv_stamp >.venv/stamp
}

prepare_lab() {
  install_packages
  if [[ ${1:-} == --lab ]]; then
    "$(find_python)" molecule/_lab/lab.py base >/dev/null
  fi
}

complete_python
case ${1:-} in
  "" | --lab)
    # Neither needs the other, and both wait for the network.
    prepare_lab "$@" &
    status=0
    install_venv &
    wait %1 || status=$?
    wait %2 || status=$?
    exit "$status"
    ;;
  --venv) install_venv ;;
  *) fail "unknown argument $1; usage: tools/bootstrap.sh [--lab | --venv]" ;;
esac
