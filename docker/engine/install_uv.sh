#!/bin/bash
# Put uv, as locked in build.lock, into /build/uv: the build needs it, no image contains it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=network.sh
. "$(dirname "$0")/network.sh"
"python${PYTHON_VERSION}" -m venv /build/uv
/build/uv/bin/pip install --disable-pip-version-check --require-hashes --requirement /build/build.lock
