#!/bin/bash
# Fill /opt/venv with exactly what a lock names, and slim it.
#
#   install.sh LOCK [option of `uv pip install` ...]
#
# Runs in the image build only, in the layer that the engine is copied from: what is removed in the same step is never shipped.
# Expects uv in /build/uv, and wheels that the package index lacks in /wheels (may be empty).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=network.sh
. "$(dirname "$0")/network.sh"
lock=$1
shift
if compgen -G '/wheels/*.whl' > /dev/null; then set -- --find-links /wheels "$@"; fi

# Bytecode is made here because the engine runs with a read-only root: it would compile all sources again at every start.
# Not tied to the sources' times, so that no way of copying an image can void it.
export PYC_INVALIDATION_MODE=UNCHECKED_HASH
/build/uv/bin/uv venv --quiet --python "/usr/bin/python${PYTHON_VERSION}" /opt/venv
/build/uv/bin/uv pip install --python /opt/venv/bin/python --no-deps --require-hashes --compile-bytecode "$@" --requirement "$lock"
rm -f /opt/venv/.lock

cd "/opt/venv/lib/python${PYTHON_VERSION}/site-packages"
# Test suites: no engine imports them.
find . -type d -name tests -prune -exec rm -rf {} +
rm -rf torch/test torch/bin/test_* torch/bin/*Test torch/bin/*.pt torch/bin/*.ptl torch/bin/upgrader_models torch/bin/protoc*
# Debug information is more than half of vLLM's own CPU kernels. Only libraries that have it are touched: stripping others could
# break what auditwheel has patched. grep reads to the end: were it quiet, readelf could end by SIGPIPE, and pipefail call that "no".
find . -type f -name '*.so*' -print0 | while IFS= read -r -d '' library; do
    if readelf --section-headers --wide "$library" 2> /dev/null | grep '\.debug_info' > /dev/null; then strip --strip-debug "$library"; fi
done
