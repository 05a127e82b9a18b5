#!/usr/bin/env bash
# Get what the tests of this folder check with and pip does not have, where it is missing: kustomize and Docker Compose of
# Debian's packages, which need no installation, and the schemas of the Prometheus Operator's kinds from npm. Into build/tools.
set -euo pipefail
cd "$(dirname "$0")/../.."
tools=$PWD/build/tools
mkdir -p "$tools/bin"
wanted=()
command -v kustomize >/dev/null || [ -x "$tools/bin/kustomize" ] || wanted+=(kustomize)
command -v docker-compose >/dev/null || [ -x "$tools/bin/docker-compose" ] || wanted+=(docker-compose)
if [ ${#wanted[@]} -gt 0 ]; then
    apt=$(mktemp -d)
    trap 'rm -rf "$apt"' EXIT
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -1)
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >"$apt/sources"
    options=(-qq -o "Dir::Etc::sourcelist=$apt/sources" -o Dir::Etc::sourceparts=/dev/null -o "Dir::State::lists=$apt/lists"
        -o "Dir::Cache=$apt/cache" -o APT::Sandbox::User= -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false)
    apt-get "${options[@]}" update
    (cd "$apt" && apt-get "${options[@]}" download "${wanted[@]}")
    for package in "$apt"/*.deb; do dpkg-deb --extract "$package" "$apt/root"; done
    find "$apt/root" -path '*/bin/kustomize' -o -path '*/cli-plugins/docker-compose' | xargs -I{} install {} "$tools/bin"
fi
if [ ! -d "$tools/node_modules" ] && command -v npm >/dev/null; then
    npm install --silent --no-audit --no-fund --prefix "$tools" @kubernetes-models/prometheus-operator@6.0.0 typescript@5.9.3
fi
