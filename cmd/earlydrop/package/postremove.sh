#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After the files went. deb says "remove", "purge" or "upgrade", rpm how many stay.
set -e

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
case ${1-} in
purge | 0)
	rm -rf /var/lib/earlydrop /var/log/earlydrop
	if [ "$1" = purge ]; then
		rm -rf /etc/earlydrop
	fi
	if getent group earlydrop >/dev/null; then
		groupdel earlydrop || :
	fi
	;;
esac
