#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Installs those of the named Debian packages that are missing, without starting
# the services that some of them bring: the lab runs its own, in namespaces.
#
# usage: install-packages.sh PACKAGE...
set -eu

missing=
for package in "$@"; do
	status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
	echo "missing Debian packages:$missing (run as root, or apt-get install them)" >&2
	exit 2
fi

policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
	# 101 = "action forbidden by policy": the packages' own way to be told not
	# to start anything.
	printf '#!/bin/sh\nexit 101\n' >"$policy"
	chmod 0755 "$policy"
	trap 'rm -f "$policy"' EXIT
	trap 'exit 130' INT TERM
fi
echo "installing Debian packages:$missing" >&2
apt-get update -qq
# Another apt, above all the one that updates by itself on a new machine, is waited for.
# The list is a list.
# shellcheck disable=SC2086
DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq --no-install-recommends $missing >/dev/null
