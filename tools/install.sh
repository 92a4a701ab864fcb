#!/bin/sh
# Makes an unpacked bundle ready, without a network: checks every file, and installs Ansible into kit/.venv.
set -eu
cd "$(dirname "$0")"

fail() {
  echo "install: $*" >&2
  exit 1
}

python=$(command -v python3) || fail "there is no python3 here: install Python 3.12 or newer, such as Debian 13's."
# What Python has compiled of the kit.
find kit -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +
# What is not listed was not checked by whoever made the bundle, and Ansible would load it from some directories.
"$python" - <<'END' ||
import os, sys
listed = {line.rstrip("\n")[66:] for line in open("SHA256SUMS")}
own = {"SHA256SUMS", "SHA256SUMS.sig", "bundle.yml"}
odd = []
for folder, folders, files in os.walk("."):
    folders[:] = [one for one in folders if os.path.join(folder, one) not in ("./kit/.venv", "./.uv")]
    links = [one for one in folders if os.path.islink(os.path.join(folder, one))]
    names = [os.path.normpath(os.path.join(folder, one)) for one in files + links]
    odd += [one for one in names if one not in listed | own]
for one in sorted(odd)[:10]:
    print(f"{one!a}: not in SHA256SUMS", file=sys.stderr)
sys.exit(bool(odd))
END
  fail "this bundle has files that it was not made with, as is said above: unpack it into an empty directory. Nothing" \
    "was installed."
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
print("image_source: archive\nimage_redis_source: archive")
for name, path in (("image_app", "images/app.tar"), ("image_redis", "images/redis.tar"),
                   ("podman_host_packages_archive", "packages.tar")):
    print(f"{name}: {json.dumps(os.path.abspath(path))}")
END
echo "Ready. With your inventory:"
echo "  cd $(pwd)/kit"
echo "  .venv/bin/ansible-playbook -i INVENTORY -e @../bundle.yml site.yml"
