#!/bin/bash
# For the Dockerfile: install.sh WORDS... installs from /wheels into /opt/serpentine, without what only those who develop
# with a package use (its tests, headers and tools), and compiled, since nothing can be written later.
set -euo pipefail
/opt/tools/bin/pip --python /opt/serpentine/bin/python install \
    --no-cache-dir --no-compile --no-index --find-links /wheels "$@"
packages=$(/opt/serpentine/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
find "$packages" -type d -name tests -prune -exec rm -r {} +
rm -rf "$packages"/torch/{include,test,share}
find "$packages/torch/bin" -type f ! -name torch_shm_manager -delete
# Files of another version of Python, which some packages carry, do not compile, and are not imported either.
/opt/serpentine/bin/python -m compileall -q -j 0 "$packages" >/dev/null || true
