#!/usr/bin/env bash
# Run a command next to a real Petals swarm: three servers of a tiny model, on the CPU and the loopback interface.
#
# Usage: scripts/petals_swarm.sh install DIR
#        scripts/petals_swarm.sh run [--timeout N] DIR MODEL -- COMMAND [ARGUMENT...]
#
# install   make the servers' environment DIR/server, if what is there is not up to date. PYTHON names the interpreter
#           (default: python3.11; the servers' libraries have packages up to 3.12). It takes minutes, and needs a
#           package registry and nothing else.
# run       start the servers, run COMMAND next to them and stop them. Blocks 0 and 1 are on the first server, 2 and 3
#           on the second and, as a spare, on the third. The servers have N seconds to start (default: 240). MODEL is
#           a folder with a Llama of 4 blocks whose config.json says rope_theta and torch_dtype, as in 2023;
#           'python -m benchmarks.parity --make-models DIR' makes one.
#
# COMMAND finds in its environment:
#   WHENCE_PETALS_PEERS     the addresses of the servers, separated by blanks
#   WHENCE_PETALS_MODEL     the absolute path of the checkpoint
#   WHENCE_PETALS_PREFIX    what the swarm calls the model: dht_prefix=
#   WHENCE_PETALS_PIDS      the process ids of the servers, in the order of the addresses; each leads a process group,
#                           so that kill -KILL -- -PID ends a server with all its processes, as a crash would
#
# The servers end with this script, however that ends. The exit status is that of COMMAND. Logs are in DIR/logs, of
# the last run only.
#
# Example: scripts/petals_swarm.sh install /tmp/petals
#          scripts/petals_swarm.sh run /tmp/petals path/to/llama -- python -m pytest tests/places/petals/test_real_swarm.py

set -euo pipefail

script="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")"
support="${script%.sh}"
server_program="$(dirname "$script")/petals_server.py"

PETALS="petals==2.2.0.post1"
PREFIX="tiny-llama-hf"
BLOCKS=(0:2 2:4 2:4)

main() {
    case "${1:-}" in
        --help | -h) usage ;;
        install) install "${@:2}" ;;
        run) run "${@:2}" ;;
        *) misused "say what to do: install or run" ;;
    esac
}

# shellcheck source=scripts/server_environment.sh
source "$(dirname "$script")/server_environment.sh"

# --- install ---

install() {
    if [[ "${1:-}" == "--help" || "${1:-}" == "-h" ]]; then
        usage
        return
    fi
    [[ $# -eq 1 ]] || misused "install takes one folder"
    local dir="$1" wanted
    wanted="$(cat "$support/requirements.txt" - <<<"$PETALS" | cksum)"
    if [[ -f "$dir/server/.installed" && "$(<"$dir/server/.installed")" == "$wanted" ]]; then
        return
    fi
    unset PYTHONPATH VIRTUAL_ENV
    echo "Making the environment of the Petals servers in $dir/server; this takes a few minutes."
    new_environment "$dir" "${PYTHON:-python3.11}" "$support/requirements.txt"
    # What it asks for itself is of 2023, and conflicts with packages that exist for today's Python.
    pip_install "$dir" --no-deps "$PETALS"
    echo "$wanted" >"$dir/server/.installed"
}

# --- run ---

run() {
    local timeout=240
    while [[ "${1:-}" == -* ]]; do
        case "$1" in
            --help | -h)
                usage
                return
                ;;
            --timeout) timeout="${2:?}" && shift 2 ;;
            *) misused "run has no option $1" ;;
        esac
    done
    [[ $# -ge 4 && "$3" == "--" ]] || misused "run takes a folder, a model and, after --, a command"
    [[ -f "$2/config.json" ]] || refuse "$2 holds no checkpoint"
    [[ -f "$1/server/.installed" ]] || refuse "$1 has no servers; try: scripts/petals_swarm.sh install $1"
    dir="$(cd "$1" && pwd)"
    model="$(cd "$2" && pwd)"
    shift 3
    logs="$dir/logs"
    rm -rf "$logs"
    mkdir -p "$logs"
    work="$(mktemp -d "${TMPDIR:-/tmp}/petals.XXXXXX")"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    local begin="$SECONDS" number
    # The others begin with the address of the first.
    start_server 1 --new_swarm
    wait_for 1 "Running a server on" "$timeout"
    addresses=("$(address 1)")
    start_server 2 --initial_peers "${addresses[0]}"
    start_server 3 --initial_peers "${addresses[0]}"
    for number in 1 2 3; do
        wait_for "$number" "Started$" "$((timeout - SECONDS + begin))"
    done
    addresses+=("$(address 2)" "$(address 3)")
    echo "The Petals swarm is ready after $((SECONDS - begin)) s." >&2

    local status=0
    # In the background, because a trap waits for what runs in the foreground.
    env WHENCE_PETALS_PEERS="${addresses[*]}" WHENCE_PETALS_MODEL="$model" WHENCE_PETALS_PREFIX="$PREFIX" \
        WHENCE_PETALS_PIDS="${servers[*]}" "$@" <&0 &
    child=$!
    wait "$child" || status=$?
    child=""
    return "$status"
}

start_server() {
    local number="$1"
    shift
    # With job control, each server leads a process group of its own.
    set -m
    env --unset=PYTHONPATH HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HOME="$work/hf" TMPDIR="$work" OMP_NUM_THREADS=1 \
        TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 PYTHONWARNINGS=ignore \
        "$dir/server/bin/python" "$server_program" "$model" --dht_prefix "$PREFIX" \
        --host_maddrs /ip4/127.0.0.1/tcp/0 --block_indices "${BLOCKS[number - 1]}" --device cpu \
        --torch_dtype float32 --throughput 1.0 --num_handlers 2 --identity_path "$work/$number.id" \
        --cache_dir "$work/cache" --attn_cache_tokens 4096 --no_auto_relay "$@" \
        >"$logs/$number.log" 2>&1 </dev/null &
    servers+=("$!")
    set +m
}
declare -a servers=() addresses=()

wait_for() {
    local number="$1" line="$2" seconds="$3" begin="$SECONDS"
    until grep -q "$line" "$logs/$number.log"; do
        kill -0 "${servers[number - 1]}" 2>/dev/null || failed "server $number ended before it was ready"
        ((SECONDS - begin < seconds)) || failed "server $number was not ready in time"
        sleep 0.2
    done
}

address() {
    # Other lines have the addresses of other servers.
    sed -n 's|.*Running a server on.*\(/ip4/127\.0\.0\.1/tcp/[0-9]*/p2p/[A-Za-z0-9]*\).*|\1|p' "$logs/$1.log" | head -n 1
}

failed() {
    local log
    for log in "$logs"/*.log; do
        echo "--- ${log#"$dir/"}"
        tail -n 20 "$log"
    done >&2
    refuse "$1; more is in $logs"
}

clean_up() {
    trap '' INT TERM HUP
    local pid
    if [[ -n "${child:-}" ]]; then
        kill -TERM "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    # Leaving the swarm properly takes longer than a command that is over should.
    for pid in ${servers[@]+"${servers[@]}"}; do
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    wait
    rm -rf "$work"
} 2>/dev/null

main "$@"
