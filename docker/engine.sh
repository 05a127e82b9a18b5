#!/usr/bin/env bash
# Run a command with a Docker daemon: docker/engine.sh COMMAND...
#
# The one that answers; else, for root with dockerd installed, one on a socket of its own that ends with the command.
# It keeps what it built in ~/.cache/serpentine/docker, and leaves the machine's packet filter alone.
set -euo pipefail
if ! docker info >/dev/null 2>&1; then
    unset DOCKER_CONTEXT
    state=${XDG_CACHE_HOME:-$HOME/.cache}/serpentine/docker
    mkdir -p "$state"
    run=$(mktemp -d)
    end() {
        kill $daemon && wait $daemon || true
        umount "$run"/exec/netns/* 2>/dev/null || true # containers on the host's network leave it mounted there
        rm -rf "$run"
    }
    dockerd --host "unix://$run/socket" --data-root "$state" --exec-root "$run/exec" --pidfile "$run/pid" \
        --bridge=none --iptables=false --ip6tables=false >"$run/log" 2>&1 &
    daemon=$!
    trap end EXIT
    export DOCKER_HOST=unix://$run/socket PATH=/usr/bin:$PATH # the client of the same package
    for _ in $(seq 300); do
        docker info >/dev/null 2>&1 && break
        kill -0 $daemon 2>/dev/null || { tail -3 "$run/log" >&2; exit 1; }
        sleep 0.2
    done
    docker info >/dev/null
fi
"$@"
