#!/usr/bin/env bash
# Build a target of the Dockerfile: docker/build.sh [cpu|cuda] [TAG]
#
# BASE names the base image. Where it is not given and no registry answers, one is made of Debian's packages
# (mmdebstrap), and the Python packages come through this machine's pip into docker/wheels.
# PYTHON is the interpreter whose pip fetches them; it must be of the base's minor version.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-cpu} tag=${2:-serpentine:${1:-cpu}}
made=serpentine-base:bookworm
if [ -z "${BASE:-}" ]; then
    BASE=python:3.11-slim-bookworm
    if ! docker image inspect "$BASE" >/dev/null 2>&1 && ! timeout 300 docker pull --quiet "$BASE" >/dev/null; then
        echo "no registry answers: the base is made of Debian's packages" >&2
        BASE=$made
    fi
fi
arguments=()
if [ "$BASE" = "$made" ]; then
    if ! docker image inspect "$BASE" >/dev/null 2>&1; then
        mmdebstrap --quiet --variant=minbase --include=python3,ca-certificates --dpkgopt=force-unsafe-io \
            --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
            --dpkgopt='path-exclude=/usr/share/locale/*' bookworm - | docker import - "$BASE" >/dev/null
    fi
    arguments+=(--build-arg "BUILD_PACKAGES=g++ tini python3-dev python3-venv" --build-arg PIP_NO_INDEX=1)
    # Debian's Python is 3.11.2, for which redis asks for async-timeout; this pip may be of a later one.
    python=${PYTHON:-python3}
    read -r -a extras < <(sed -n 's/^ENV EXTRAS="\(.*\)"$/\1/p' docker/Dockerfile)
    constraints=constraints.txt
    mkdir -p build
    if [ "$target" = cuda ]; then
        extras+=(gpu) constraints=build/constraints-cuda.txt
        sed 's/^torch==/torch===/' constraints.txt >$constraints
    fi
    "$python" docker/requirements.py "${extras[@]}" >build/requirements.txt
    "$python" docker/requirements.py --build >>build/requirements.txt
    "$python" -m pip wheel --quiet --wheel-dir docker/wheels --find-links docker/wheels -c $constraints \
        -r build/requirements.txt async-timeout cmake cyclonedx-bom ninja
fi
DOCKER_BUILDKIT=1 docker build --network host --file docker/Dockerfile --target "$target" --tag "$tag" \
    --build-arg "BASE=$BASE" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || true)" "${arguments[@]}" .
