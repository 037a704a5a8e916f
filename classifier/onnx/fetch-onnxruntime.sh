#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts ONNX Runtime's shared library into DESTDIR as libonnxruntime.so.1. With
# --cuda the CUDA provider lies beside it (x86_64 only; about 300 MB are fetched, nothing
# of CUDA itself), and what it lacks on this machine is named. With --machine the library is
# the one for another machine than this.
#
# The libraries are taken out of npm packages. A package is pinned by version and by
# the integrity hash of its archive, each library by its own hash; nothing of a
# package is run. Where all is there already, nothing is fetched.
#
# Microsoft has the CUDA provider in no npm package: the one that is pinned is republished by
# a third party. With --from, library and provider are taken out of a folder or .tgz archive
# instead, such as Microsoft's release onnxruntime-linux-x64-gpu_cuda13-1.29.0.tgz. Nothing
# pins these; their hashes are printed.
#
# An archive is fetched with curl, and with npm, where that is installed, if curl
# can't get it: npm knows tokens, other paths and proxies that its configuration
# names. The registry is that of NPM_CONFIG_REGISTRY, else of npm's configuration
# where npm is installed, else npm's public one. Proxies: http_proxy, https_proxy,
# all_proxy and no_proxy, in either case.
#
# usage: fetch-onnxruntime.sh [--cuda [--from FOLDER|ARCHIVE]] [--machine x86_64|aarch64] DESTDIR
#
# Exit codes: 0 all is there, 1 failed, 3 the registry has refused curl and npm,
# which might get it, is not installed.
set -eu

default_registry=https://registry.npmjs.org

fail() {
	echo "fetch-onnxruntime: $*" >&2
	exit 1
}

usage() { fail "usage: fetch-onnxruntime.sh [--cuda [--from FOLDER|ARCHIVE]] [--machine x86_64|aarch64] DESTDIR"; }
cuda=
from=
machine=$(uname -m)
while :; do
	case ${1-} in
	--cuda) cuda=yes ;;
	--from)
		[ -n "${2-}" ] || usage
		from=$2
		shift
		;;
	--machine)
		[ $# -ge 2 ] || usage
		machine=$2
		shift
		;;
	*) break ;;
	esac
	shift
done
[ $# -eq 1 ] || usage
case $1 in
"" | -*) usage ;;
esac
dest=$1
[ -z "$from" ] || [ -n "$cuda" ] || usage

case $machine in
x86_64 | amd64) arch=x64 ;;
aarch64 | arm64) arch=arm64 ;;
*) fail "there is no ONNX Runtime to fetch for $machine (only for x86_64 and aarch64)" ;;
esac

# One line per library: package, version, path in the package, its sha256. The
# folder napi-v6 is the addon interface and changes between releases.
case $arch in
x64) hash=89688f5cf51c7e31befbb7b9101bc027799009b18d1baa9a5b1146a72e69538d ;;
arm64) hash=a27d21126db312aa8f02f3d5eaebe466e991f51f469882e6d0407d5a8b64afda ;;
esac
libraries="onnxruntime-node 1.29.0 bin/napi-v6/linux/$arch/libonnxruntime.so.1 $hash"
if [ -n "$cuda" ]; then
	[ $arch = x64 ] || fail "there is no CUDA provider to fetch for $machine (only for x86_64)"
	# Built for CUDA 13 and the release of the library above.
	libraries="$libraries
com.github.asus4.onnxruntime.linux-x64-gpu 0.4.9 Plugins/Linux/x64/libonnxruntime_providers_shared.so c6a12593396095f5670160e284c35d1700b7708cf3037b7042e2a5200ccae772
com.github.asus4.onnxruntime.linux-x64-gpu 0.4.9 Plugins/Linux/x64/libonnxruntime_providers_cuda.so 56cf3254b118ad837ccc4ed8f6d1b23504bbf7ef91b34cbc0b289cb7f10b3037"
fi

# integrity_of PACKAGE VERSION: what `npm view PACKAGE@VERSION dist.integrity` prints.
integrity_of() {
	case $1@$2 in
	onnxruntime-node@1.29.0) echo sha512-WjiVVB72riILz8HbYvxvmjKyE/WmkYoSfKY++axo5jAR609HQg8MwiG/HhShpTcJfmmAdzxxmB+MMST3A+SiPA== ;;
	com.github.asus4.onnxruntime.linux-x64-gpu@0.4.9) echo sha512-FopIhNE/Ng+v2X65wVc9clPCBCvhvA53Hxo2U0Kf5fGdVsC7iCA+mZ0KLWggcQAj7TIZ6pNidR4AC10g74Xo6w== ;;
	esac
}

sum() { sha256sum "$1" | cut -d ' ' -f 1; }

# present PATH SHA256: the library is there, whole and of this release.
present() { [ -f "$1" ] && [ "$(sum "$1")" = "$2" ]; }

have() { command -v "$1" >/dev/null 2>&1; }

# lacking: names what this machine does not have of what the CUDA provider needs.
lacking() {
	if [ -z "$cuda" ] || [ "$(uname -m)" != x86_64 ] || ! have ldd; then return 0; fi
	{
		ldd "$dest/libonnxruntime_providers_cuda.so" 2>/dev/null
		# Loaded when a model needs it, so that ldd does not know of it.
		! have ldconfig || ldconfig -p | grep -q 'libcudnn\.so\.9 ' || echo "libcudnn.so.9 => not found"
	} | sed -n 's/^[[:space:]]*\([^ ]*\) => not found.*/\1/p' | while read -r library; do
		case $library in
		libcuda.so.*) what="NVIDIA's driver" ;;
		libcudart.so.*) what="CUDA's runtime" ;;
		libcublas*) what=cuBLAS ;;
		libcurand.so.*) what=cuRAND ;;
		libcufft.so.*) what=cuFFT ;;
		libcudnn.so.*) what="cuDNN; models with convolutions need it, such as paper" ;;
		*) what="a library of the system" ;;
		esac
		echo "for a GPU, this machine lacks $library ($what)" >&2
	done
}

missing=$from
while read -r package version member hash; do
	present "$dest/${member##*/}" "$hash" || missing=yes
done <<END
$libraries
END
[ -n "$missing" ] || {
	lacking
	exit 0
}

for tool in tar gzip base64 od sha256sum sha512sum; do
	have "$tool" || fail "$tool is not installed (on Debian: apt-get install tar gzip coreutils)"
done
[ -n "$from" ] || have curl || have npm || fail "neither curl nor npm is installed (on Debian: apt-get install curl ca-certificates)"

mkdir -p "$dest"
tmp=$(mktemp -d)
part=$dest/.part.$$
# A second signal must not end the cleaning up, nor come between the first one and that.
trap 'trap "" HUP INT TERM; rm -rf "$tmp" "$part"' EXIT
trap 'trap "" HUP INT TERM; exit 130' HUP INT TERM

# put FILE NAME: a rename within one folder is atomic, so a reader sees the old library or
# the whole new one.
put() {
	[ ! -d "$dest/$2" ] || fail "$dest/$2 is a folder: remove it"
	cp "$1" "$part"
	chmod 0755 "$part"
	mv -f "$part" "$dest/$2"
	echo "installed $dest/$2" >&2
}

if [ -n "$from" ]; then
	root=$from
	if [ -f "$from" ]; then
		root=$tmp
		tar xzf "$from" -C "$tmp" || fail "$from can't be unpacked"
	fi
	set --
	for name in libonnxruntime.so.1 libonnxruntime_providers_shared.so libonnxruntime_providers_cuda.so; do
		found=
		for dir in "$root" "$root"/lib "$root"/*/lib; do
			[ -n "$found" ] || [ ! -f "$dir/$name" ] || found=$dir/$name
		done
		[ -n "$found" ] || fail "$from has no $name, neither in itself nor in lib"
		set -- "$@" "$found"
	done
	for file; do
		put "$file" "${file##*/}"
		echo "sha256 $(sum "$dest/${file##*/}")" >&2
	done
	lacking
	exit 0
fi

registry=${NPM_CONFIG_REGISTRY:-${npm_config_registry:-}}
named="NPM_CONFIG_REGISTRY is"
if [ -z "$registry" ] && have npm; then
	# In an empty folder: npm would read a project's configuration as well.
	registry=$(cd "$tmp" && npm config get registry 2>/dev/null) || registry=
	named="npm is configured for the registry"
fi
case $registry in
"" | undefined | null) registry=$default_registry ;;
esac
# Credentials in the address are for the registry alone, neither for the terminal nor
# for the list of processes.
shown=$(printf '%s' "$registry" | sed -e 's#^[^/]*@##' -e 's#//[^/]*@#//#')
case $registry in
http://?* | https://?*) ;;
*) fail "$named \"$shown\", which is no http or https address" ;;
esac
# A password may have an @ of its own, which npm takes as it is and curl does not.
authority=${registry#*://}
authority=${authority%%/*}
user=${authority%@*}
[ "$user" = "$authority" ] ||
	registry=${registry%%://*}://$(printf '%s' "$user" | sed 's/@/%40/g')@${registry#*"$user"@}
while [ "$registry" != "${registry%/}" ]; do registry=${registry%/}; done
while [ "$shown" != "${shown%/}" ]; do shown=${shown%/}; done

# curl ignores this one in capitals, which npm and others read.
if [ -z "${http_proxy:-}" ] && [ -n "${HTTP_PROXY:-}" ]; then
	export http_proxy="$HTTP_PROXY"
fi

# by_curl PACKAGE VERSION FILE: sets why and returns curl's exit code on failure. What it
# says does not go by a file: the disk may be full.
by_curl() {
	# A scope is part of the package's name, but not of its archive's.
	url=$registry/$1/-/${1##*/}-$2.tgz
	escaped=$(printf '%s' "$url" | sed 's/[\\"]/\\&/g')
	why=$(printf 'url = "%s"\n' "$escaped" |
		curl --config - --fail --location --silent --show-error --proto =http,https --proto-redir =http,https \
			--connect-timeout 15 --speed-limit 1000 --speed-time 30 --retry 2 --output "$3" 2>&1) && return 0
	code=$?
	why=$(printf '%s\n' "$why" | tail -n 1 | sed -e 's/^curl: ([0-9]*) *//' -e 's#//[^/ ]*@#//#g')
	return "$code"
}

# by_npm PACKAGE VERSION FILE: sets why on failure: of all that npm prints, the first lines.
by_npm() {
	# npm resolves a bare folder name as a project, so it runs in an empty one.
	mkdir "$tmp/npm"
	why=$(cd "$tmp/npm" && npm pack --ignore-scripts --loglevel=error --fetch-retries=1 "$1@$2" 2>&1) || {
		why=$(printf '%s\n' "$why" | sed -n -e '/^npm [^ ]* *at /d' -e 's/^npm [^ ]* *//p' | sed -n '1,4p' | tr '\n' ';' | sed -e 's/;$//' -e 's/;/; /g' -e 's#//[^/ ]*@#//#g')
		return 1
	}
	mv "$tmp/npm"/*.tgz "$3" && rmdir "$tmp/npm"
}

# fetch PACKAGE VERSION FILE: the package's archive, its hash as pinned.
fetch() {
	echo "fetching $1 $2 from $shown" >&2
	code=none
	if have curl; then
		code=0
		by_curl "$@" || code=$?
	fi
	if [ "$code" = 23 ]; then
		fail "can't write $3: $why (is the disk full? TMPDIR names another folder)"
	elif [ "$code" != 0 ] && have npm; then
		[ "$code" = none ] || echo "fetch-onnxruntime: curl: $why; trying npm" >&2
		by_npm "$@" || fail "can't get $1@$2 from $shown: npm: $why"
	elif [ "$code" = 22 ]; then # the registry's answer is an error
		echo "fetch-onnxruntime: $shown: $why; npm, which might know how to ask, is not installed" >&2
		exit 3
	elif [ "$code" != 0 ]; then
		fail "can't get $1@$2 from $shown: $why (set https_proxy or NPM_CONFIG_REGISTRY where there is no direct way out)"
	fi
	expected=$(integrity_of "$1" "$2")
	# The pin is written as npm writes it, in base64; sha512sum prints hexadecimal.
	hex=$(printf '%s' "${expected#sha512-}" | base64 -d | od -An -v -tx1 | tr -d ' \n')
	[ "$(sha512sum "$3" | cut -d ' ' -f 1)" = "$hex" ] ||
		fail "the archive of $1@$2 from $shown is not the one that was pinned ($expected); nothing was unpacked"
}

last=
while read -r package version member hash; do
	[ ! -d "$dest/${member##*/}" ] || fail "$dest/${member##*/} is a folder: remove it"
	! present "$dest/${member##*/}" "$hash" || continue
	if [ "$package@$version" != "$last" ]; then
		rm -f "$tmp/archive.tgz"
		fetch "$package" "$version" "$tmp/archive.tgz" </dev/null
		last=$package@$version
		[ "$package" = onnxruntime-node ] ||
			echo "$last is a third party's, not Microsoft's own (--from takes that); it is pinned by hash" >&2
	fi
	tar xzf "$tmp/archive.tgz" -C "$tmp" "package/$member" ||
		fail "$package@$version holds no $member"
	[ "$(sum "$tmp/package/$member")" = "$hash" ] ||
		fail "sha256 of $member in $package@$version is $(sum "$tmp/package/$member"), expected $hash"
	put "$tmp/package/$member" "${member##*/}"
done <<END
$libraries
END
lacking
