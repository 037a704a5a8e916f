#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Fuzzes each target of this module for a time: test/fuzz.sh 10s. A target fails with an
# input that is written below its package's testdata/fuzz.
set -eu
time=$1
out=$(mktemp)
trap 'rm -f "$out"' EXIT

grep -rlE '^func Fuzz' --include='*_test.go' . | while read -r file; do
	grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | cut -c6- | while read -r target; do
		echo "== $(dirname "$file") $target"
		if go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" -fuzzminimizetime 100x "$(dirname "$file")" >"$out" 2>&1 </dev/null; then
			tail -n 2 "$out"
			continue
		fi
		cat "$out"
		# Go's fuzzer now and then takes the end of its time for a failure. It names no
		# input then.
		if grep -q 'Failing input' "$out" || ! grep -q 'context deadline exceeded' "$out"; then
			exit 1
		fi
		echo "== the time was over; no input failed"
	done
done
