#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts ONNX Runtime's shared library into DESTDIR as libonnxruntime.so.1.
#
# The library is taken out of the npm package onnxruntime-node, which carries
# Linux builds for x64 and arm64. The package is pinned by version and by the
# integrity hash of its archive, the library by its own hash; nothing of the
# package is run.
#
# usage: fetch-onnxruntime.sh DESTDIR
set -eu

package=onnxruntime-node
version=1.24.3
integrity=sha512-JH7+czbc8ALA819vlTgcV+Q214/+VjGeBHDjX81+ZCD0PCVCIFGFNtT0V4sXG/1JXypKPgScQcB3ij/hk3YnTg==

fail() {
	echo "fetch-onnxruntime: $*" >&2
	exit 1
}

if [ $# -ne 1 ] || [ -z "$1" ]; then
	fail "usage: fetch-onnxruntime.sh DESTDIR"
fi
dest=$1

machine=$(uname -m)
case $machine in
x86_64 | amd64)
	arch=x64
	library=92ba8e44d31b80a34f5e805076a044122c3be1fffe0d88ed790de7267b0b2682
	;;
aarch64 | arm64)
	arch=arm64
	library=33032cb5b91c12edbf028d7c69fa40a31848d66c0095448758af237d5e0b07db
	;;
*) fail "$package $version has no Linux library for $machine (only x86_64 and aarch64)" ;;
esac

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

target=$dest/libonnxruntime.so.1
if [ -f "$target" ] && [ "$(sum "$target")" = "$library" ]; then
	exit 0
fi

for tool in npm openssl tar sha256sum; do
	command -v "$tool" >/dev/null 2>&1 ||
		fail "$tool is not installed (on Debian: apt-get install npm openssl tar coreutils)"
done

mkdir -p "$dest"
tmp=$(mktemp -d)
part=$target.part.$$
trap 'rm -rf "$tmp" "$part"' EXIT
trap 'exit 130' INT TERM

echo "fetching ONNX Runtime $version for $machine ($package from npm)" >&2
# npm resolves a bare folder name as a project, so it runs in the empty one.
(cd "$tmp" && npm pack --ignore-scripts --silent "$package@$version" >npm.out 2>&1) || {
	cat "$tmp/npm.out" >&2
	fail "npm could not get $package@$version"
}
archive=$tmp/$package-$version.tgz
[ -f "$archive" ] || fail "npm wrote no $package-$version.tgz"

got=sha512-$(openssl dgst -sha512 -binary "$archive" | openssl base64 -A)
[ "$got" = "$integrity" ] ||
	fail "integrity of $package@$version is $got, expected $integrity; nothing was unpacked"

# The folder in between names the addon interface (napi-vN) and changes
# between releases of the package.
member=$(tar tzf "$archive" | grep -E "^package/bin/napi-v[0-9]+/linux/$arch/libonnxruntime\.so\.1\$") ||
	fail "$package@$version holds no libonnxruntime.so.1 for linux/$arch"
tar xzf "$archive" -C "$tmp" "$member"
[ "$(sum "$tmp/$member")" = "$library" ] ||
	fail "sha256 of $member is $(sum "$tmp/$member"), expected $library"

# A rename within one folder is atomic: a reader sees the old library or the
# whole new one.
cp "$tmp/$member" "$part"
chmod 0755 "$part"
mv -f "$part" "$target"
echo "installed $target" >&2
