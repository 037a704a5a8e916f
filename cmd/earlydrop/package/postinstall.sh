#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After unpacking, of both kinds of package: deb says "configure [OLD-VERSION]", rpm "1" or
# "2" (an upgrade).
set -e

getent group earlydrop >/dev/null || groupadd --system earlydrop
install -d -o root -g earlydrop -m 0750 /var/log/earlydrop

[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# A running daemon is replaced; what it has blocked stays blocked in the meantime. It is not
# started at the first installation: no interface is chosen yet.
systemctl try-restart earlydrop.service earlydrop-web.service
