#!/bin/bash
# Install distribution packages and leave no trace of having looked for them.
#
#   packages.sh PACKAGE ...
#
# Runs in the image build only. The BuildKit secret `ca` (optional) holds the certificates to trust where apt's mirror is https.
set -euo pipefail
options=(-o APT::Update::Error-Mode=any)
if [ -s /run/secrets/ca ]; then options+=(-o Acquire::https::CAInfo=/run/secrets/ca); fi

apt-get "${options[@]}" update
for package in "$@"; do
    if ! apt-get "${options[@]}" --simulate install "$package" > /dev/null; then
        # shellcheck source=/dev/null
        . /etc/os-release
        echo "error: ${PRETTY_NAME} has no package ${package}. Choose another BASE_IMAGE; Debian 12 has all that is needed." >&2
        exit 1
    fi
done
export DEBIAN_FRONTEND=noninteractive
# The base may be older than its distribution's last security updates.
apt-get "${options[@]}" upgrade --yes --no-install-recommends
apt-get "${options[@]}" install --yes --no-install-recommends "$@"
apt-get clean
rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/ldconfig/aux-cache
