#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Builds a deb, an rpm and a tarball for each machine, and the sums of all files, in
# DIST. The program is built for another machine by Debian's cross compiler. The same
# commit gives the same files.
#
# usage: packages.sh VERSION DIST [ARCHITECTURE...]
#
# VERSION is what "git describe" says; ARCHITECTURE as Go has it, by default amd64 and arm64.
# The variable KINDS names those that are wanted, of "deb rpm tar.gz".
set -euo pipefail

describe=$1 dist=$2
shift 2
kinds=${KINDS:-deb rpm tar.gz}
[ $# -gt 0 ] || set -- amd64 arm64
here=$(dirname "$0")
cd "$here/../../.."
here=cmd/earlydrop/package

SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
# Both kinds of package compare versions by their numbers, and rpm takes no hyphen: a
# commit without a tag before it sorts below every release.
case $describe in
v[0-9]*) VERSION=${describe#v} ;;
*) VERSION=0~$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S).$describe ;;
esac
VERSION=${VERSION//-/.}
export VERSION SOURCE_DATE_EPOCH

compiler() {
	case $1 in
	"$(go env GOHOSTARCH)") echo gcc ;;
	amd64) echo x86_64-linux-gnu-gcc ;;
	arm64) echo aarch64-linux-gnu-gcc ;;
	*)
		echo "packages: nothing is built for $1 (only for amd64 and arm64)" >&2
		return 1
		;;
	esac
}
machine() { if [ "$1" = amd64 ]; then echo x86_64; else echo aarch64; fi; }

rm -f "$dist"/earlydrop[-_]* "$dist/SHA256SUMS"
mkdir -p "$dist"
stages=$(mktemp -d)
trap 'rm -rf "$stages"' EXIT
for ARCH; do
	export ARCH STAGE=$stages/$ARCH
	cc=$(compiler "$ARCH")
	program=$stages/earlydrop.$ARCH library=.cache/lib-$ARCH
	CC=$cc CGO_ENABLED=1 GOARCH=$ARCH go build -trimpath -ldflags "-s -w -X main.version=$describe" -o "$program" ./cmd/earlydrop
	classifier/onnx/fetch-onnxruntime.sh --machine "$(machine "$ARCH")" "$library"
	"$here/install.sh" "$STAGE" /usr "$program" "$library/libonnxruntime.so.1" bin/earlydrop
	for kind in $kinds; do
		[ "$kind" = tar.gz ] ||
			go tool -modfile="$here/nfpm.mod" nfpm package --config "$here/nfpm.yaml" --packager "$kind" --target "$dist"
	done
	[[ $kinds = *tar.gz* ]] || continue
	name=earlydrop-$VERSION-linux-$ARCH
	"$here/install.sh" "$stages/$name" /usr/local "$program" "$library/libonnxruntime.so.1" bin/earlydrop
	tar -C "$stages" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -c "$name" | gzip -9n >"$dist/$name.tar.gz"
done
cd "$dist"
sha256sum -- earlydrop* >SHA256SUMS
