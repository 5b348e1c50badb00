#!/usr/bin/env bash
# Build the sdist and the wheel, look into the wheel, and use it in an environment of its own.
#
# Usage: scripts/check_wheel.sh PYTHON
#
# PYTHON is an interpreter that has the package 'build'. The wheel is installed with the versions of
# constraints/dev.txt and used from another folder, where the sources cannot be imported, without network.
#
# Example: scripts/check_wheel.sh .venv/bin/python

set -euo pipefail

if [[ $# -ne 1 || "$1" == "--help" || "$1" == "-h" ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    [[ $# -eq 1 ]] || exit 2
    exit 0
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
builder="$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
unset PYTHONPATH VIRTUAL_ENV

echo "Building the sdist, and the wheel from it."
"$builder" -m build --outdir "$work/dist" "$root" >"$work/build.log" 2>&1 || {
    cat "$work/build.log"
    exit 1
}
wheel="$(echo "$work"/dist/*.whl)"
"$builder" "$root/scripts/inspect_wheel.py" "$wheel" --forbid "$root" --forbid "$work"

echo "Installing the wheel in an environment of its own."
"$builder" -m venv "$work/venv"
bin="$work/venv/bin"
"$bin/python" -m pip install --quiet --disable-pip-version-check --upgrade pip
"$bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$root/constraints/dev.txt" "$wheel"

mkdir "$work/elsewhere"
cd "$work/elsewhere"
export HF_HUB_OFFLINE=1
"$bin/python" "$root/scripts/use_installed.py" --not-from "$root"
"$bin/whence" attribute "Once upon a time" --max-new-tokens 12 --save story.json
"$bin/whence" show story.json >shown.txt
grep -q "Once" shown.txt
"$bin/python" -m whence methods
"$bin/whence" models
"$bin/whence" --version
echo "The wheel works: $(basename "$wheel")"
