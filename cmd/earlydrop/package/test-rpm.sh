#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs, upgrades and erases an rpm with the real rpm, on a copy of this machine that is
# thrown away: an overlay in a mount namespace, of which the machine itself sees nothing. There
# is no systemd in it, and no BPF file system. It needs root.
#
# usage: test-rpm.sh OLDER.rpm NEWER.rpm
set -euo pipefail

[ $# -eq 2 ] || {
	echo "usage: test-rpm.sh OLDER.rpm NEWER.rpm" >&2
	exit 2
}
if [ "${INSIDE-}" != namespace ]; then
	INSIDE=namespace exec unshare --mount --propagation private "$0" "$(realpath "$1")" "$(realpath "$2")"
fi
copy=$(mktemp -d)
trap 'umount -R "$copy"; rmdir "$copy"' EXIT
mount -t tmpfs none "$copy"
mkdir "$copy"/{upper,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$copy/upper,workdir=$copy/work" "$copy/root"
mount --bind /proc "$copy/root/proc"
mount --bind /dev "$copy/root/dev"
cp "$1" "$copy/root/older.rpm"
cp "$2" "$copy/root/newer.rpm"

chroot "$copy/root" /bin/bash -euo pipefail <<'INSIDE'
fail() {
	echo "test-rpm: $*" >&2
	exit 1
}
# Debian's rpm has no database of what dpkg has installed, and has to be told that it is meant.
rpm() { command rpm --force-debian --nodeps "$@"; }
group() { getent group earlydrop >/dev/null; }
there() { [ -e "$1" ] || fail "$2: $1 is not there"; }
gone() { [ ! -e "$1" ] || fail "$2: $1 is there"; }

rm -rf /etc/earlydrop /var/{lib,log}/earlydrop # of this machine, in the copy
! group || groupdel earlydrop

rpm -i /older.rpm
[ -z "$(command rpm -V --nodeps earlydrop)" ] || fail "installed: $(command rpm -V --nodeps earlydrop)"
[[ $(earlydrop --version) = *0.0.1* ]] || fail "installed: it is $(earlydrop --version)"
group || fail "installed: there is no group earlydrop"
[ "$(stat -c '%U:%G %a' /var/log/earlydrop)" = "root:earlydrop 750" ] || fail "installed: /var/log/earlydrop is $(stat -c '%U:%G %a' /var/log/earlydrop)"
for file in /usr/lib/systemd/system/earlydrop.service /usr/lib/earlydrop/libonnxruntime.so.1 /etc/earlydrop/{earlydrop,policy}.yaml /usr/share/earlydrop/alerts.yaml; do
	there "$file" installed
done
earlydrop policy check /etc/earlydrop/policy.yaml >/dev/null || fail "installed: the policy is refused"

# An upgrade keeps what the operator has written, and what was logged.
echo '# mine' >>/etc/earlydrop/policy.yaml
touch /var/log/earlydrop/events.json
mkdir -p /var/lib/earlydrop
rpm -U /newer.rpm
[[ $(earlydrop --version) = *0.0.2* ]] || fail "upgraded: it is $(earlydrop --version)"
grep -qx '# mine' /etc/earlydrop/policy.yaml || fail "upgraded: the operator's policy is lost"
there /var/log/earlydrop/events.json upgraded
there /var/lib/earlydrop upgraded
group || fail "upgraded: there is no group earlydrop"

# Erased, nothing is left but what the operator has written.
rpm -e earlydrop
for file in /usr/bin/earlydrop /usr/lib/earlydrop /usr/share/earlydrop /usr/lib/systemd/system/earlydrop.service /var/log/earlydrop /var/lib/earlydrop /etc/earlydrop/earlydrop.yaml; do
	gone "$file" erased
done
! group || fail "erased: the group earlydrop is there"
grep -qx '# mine' /etc/earlydrop/policy.yaml.rpmsave || fail "erased: the operator's policy is lost"
INSIDE
echo "rpm: installed, upgraded and erased"
