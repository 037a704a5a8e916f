#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts uPlot, which draws the page's charts, into DESTDIR: the script, the style sheet and
# the licence, as the npm package of the pinned version has them. They are checked in, and a
# test knows their hashes; this is how they got there. Nothing of the package is run.
#
# usage: fetch-uplot.sh DESTDIR
set -eu

package=uplot@1.6.32
# What "npm view $package dist.integrity" prints.
integrity=sha512-KIMVnG68zvu5XXUbC4LQEPnhwOxBuLyW1AHtpm6IKTXImkbLgkMy+jabjLgSLMasNuGGzQm/ep3tOkyTxpiQIw==

if [ $# -ne 1 ] || [ ! -d "$1" ]; then
	echo "usage: fetch-uplot.sh DESTDIR" >&2
	exit 2
fi
dest=$(cd "$1" && pwd)
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp" # npm would read a project's configuration as well
npm pack --ignore-scripts --loglevel=error "$package" >/dev/null
# The pin is written as npm writes it, in base64; sha512sum prints hexadecimal.
expected=$(printf '%s' "${integrity#sha512-}" | base64 -d | od -An -v -tx1 | tr -d ' \n')
[ "$(sha512sum ./*.tgz | cut -d ' ' -f 1)" = "$expected" ] || {
	echo "fetch-uplot: the archive of $package is not the one that was pinned; nothing was unpacked" >&2
	exit 1
}
tar xzf ./*.tgz package/dist/uPlot.iife.min.js package/dist/uPlot.min.css package/LICENSE
cp package/dist/uPlot.iife.min.js "$dest/uplot.js"
cp package/dist/uPlot.min.css "$dest/uplot.css"
cp package/LICENSE "$dest/LICENSE-uplot"
