#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts everything that belongs to an installation below DESTDIR: the program and ONNX
# Runtime, man pages, completions, manual, unit, and the configuration where there is none.
#
# usage: install.sh DESTDIR PREFIX PROGRAM LIBRARY [TOOL]
#
# DESTDIR may be empty: then it is installed on this machine. PROGRAM is installed; TOOL, by
# default the same, is run to write pages and completions: a program for another machine
# can't.
set -eu

[ $# -ge 4 ] || {
	echo "usage: install.sh DESTDIR PREFIX PROGRAM LIBRARY [TOOL]" >&2
	exit 2
}
dest=$1 prefix=$2 program=$3 library=$4 tool=${5:-$3}
here=$(dirname "$0")
root=$here/../../..

case $prefix in
/*) ;;
*)
	echo "install: PREFIX \"$prefix\" is no absolute path" >&2
	exit 2
	;;
esac
to=$dest$prefix

# Whoever may write here chooses the code that root runs.
umask 022
put() { install -D -m "$1" "$2" "$3"; }

put 0755 "$program" "$to/bin/earlydrop"
put 0755 "$library" "$to/lib/earlydrop/libonnxruntime.so.1"

mkdir -p "$to/share/man/man8"
"$tool" man "$to/share/man/man8"
gzip -9nf "$to"/share/man/man8/earlydrop*.8
for shell in bash:bash-completion/completions/earlydrop zsh:zsh/vendor-completions/_earlydrop fish:fish/vendor_completions.d/earlydrop.fish; do
	file=$to/share/${shell#*:}
	mkdir -p "$(dirname "$file")"
	"$tool" completion "${shell%%:*}" >"$file"
done

doc=$to/share/doc/earlydrop
for file in README.md LICENSE; do put 0644 "$root/$file" "$doc/$file"; done
for file in "$root"/LICENSES/*; do put 0644 "$file" "$doc/LICENSES/$(basename "$file")"; done
for file in "$root"/cmd/earlydrop/doc/*; do put 0644 "$file" "$doc/manual/$(basename "$file")"; done
for file in "$root"/policy/examples/*; do put 0644 "$file" "$doc/policy/examples/$(basename "$file")"; done

for file in alerts.yaml dashboard.json; do put 0644 "$here/$file" "$to/share/earlydrop/$file"; done

mkdir -p "$to/lib/systemd/system"
for unit in earlydrop.service earlydrop-web.service; do
	sed "s#/usr/bin/earlydrop#$prefix/bin/earlydrop#g" "$here/$unit" >"$to/lib/systemd/system/$unit"
done

# What an operator has written stays.
config() { [ -e "$2" ] || put 0644 "$1" "$2"; }
config "$here/earlydrop.yaml" "$dest/etc/earlydrop/earlydrop.yaml"
config "$here/logrotate" "$dest/etc/logrotate.d/earlydrop"
if [ ! -e "$dest/etc/earlydrop/policy.yaml" ]; then
	"$tool" policy default >"$dest/etc/earlydrop/policy.yaml"
fi
