#!/bin/sh
# Makes an unpacked bundle ready, without a network: checks every file, and installs Ansible into kit/.venv.
set -eu
cd "$(dirname "$0")"

fail() {
  echo "install: $*" >&2
  exit 1
}

python=$(command -v python3) || fail "there is no python3 here: install Python 3.12 or newer, such as Debian 13's."
sha256sum --check --strict --quiet SHA256SUMS ||
  fail "this bundle is not whole, as is said above: copy it here again. Nothing was installed."

# uv needs neither pip nor venv, which Debian packs apart from Python.
trap 'rm -rf .uv' EXIT
rm -rf .uv
"$python" -m zipfile --extract wheels/uv-*.whl .uv
uv=$(echo .uv/*/scripts/uv)
chmod 755 "$uv"
"$uv" venv --quiet --clear --offline --no-config --no-cache --no-python-downloads --python '>=3.12,<3.15' kit/.venv ||
  fail "no Python that the bundle has wheels for (3.12 to 3.14) was found here."
"$uv" pip install --quiet --offline --no-config --no-cache --no-index --find-links wheels --require-hashes \
  --link-mode copy --compile-bytecode --python kit/.venv/bin/python --requirement controller.lock

"$python" - >bundle.yml <<END
import json, os
print("# Written by install.sh: where the images and packages of this bundle are.")
print("image_source: archive")
for name, path in (("image_app", "images/app.tar"), ("image_redis", "images/redis.tar"),
                   ("podman_host_packages_archive", "packages.tar")):
    print(f"{name}: {json.dumps(os.path.abspath(path))}")
END
echo "Ready. With your inventory:"
echo "  cd $(pwd)/kit"
echo "  .venv/bin/ansible-playbook -i INVENTORY -e @../bundle.yml site.yml"
