# shellcheck shell=bash disable=SC2154
# Sourced by the scripts that start real servers; they set `script` to their own path first.

usage() {
    awk 'NR > 1 && !/^#/ { exit } NR > 1 { sub(/^# ?/, ""); print }' "$script"
}

misused() {
    echo "$(basename "$script"): $1 (see --help)" >&2
    exit 2
}

refuse() {
    echo "$(basename "$script"): $1" >&2
    exit 1
}

# pip_install DIR ARGUMENT...: into the environment DIR/server
pip_install() {
    "$1/server/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "${@:2}"
}

# new_environment DIR PYTHON REQUIREMENTS: make DIR/server anew, with what a file asks for
new_environment() {
    mkdir -p "$1"
    "$2" -m venv --clear "$1/server"
    pip_install "$1" --upgrade pip
    pip_install "$1" --requirement "$3"
}
