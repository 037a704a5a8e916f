#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Before files go. deb says "remove" or "upgrade", rpm how many stay: 0 or 1.
set -e

case ${1-} in
remove | 0) ;;
*) exit 0 ;;
esac
if [ -d /run/systemd/system ]; then
	systemctl --no-reload disable --now earlydrop-web.service earlydrop.service || :
fi
# Blocks outlive the daemon, but not the package.
/usr/bin/earlydrop detach --all || :
