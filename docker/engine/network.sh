# shellcheck shell=bash
# Sourced by what downloads Python packages in the image build. BuildKit secrets, both optional: `ca`, the certificates to trust,
# and `index`, the package indexes to use (lines NAME='value' of pip's and uv's own variables).
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca SSL_CERT_FILE=/run/secrets/ca; fi
if [ -s /run/secrets/index ]; then
    set -a
    # shellcheck source=/dev/null
    . /run/secrets/index
    set +a
fi
