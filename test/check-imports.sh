#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Holds the rules of who imports whom: data goes one way, and cgo stays in one
# place. Prints each breach and fails.
set -eu

module=github.com/earlydrop/earlydrop
failed=0

# forbid PACKAGES IMPORT WHY: no package of PACKAGES may import IMPORT, directly.
forbid() {
	found=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} imports {{.}}{{"\n"}}{{end}}' "$1" |
		grep -E " imports $2(/|\$)" || true)
	if [ -n "$found" ]; then
		printf '%s\n  (%s)\n' "$found" "$3" >&2
		failed=1
	fi
}

plain="plain types of loader/flow are all that they share"
forbid ./classifier/... "$module/policy" "$plain"
forbid ./classifier/... "$module/cmd" "$plain"
forbid ./policy/... "$module/classifier" "$plain"
forbid ./policy/... "$module/cmd" "$plain"
forbid ./loader/... "$module/(classifier|policy|models|cmd|test)" "$plain"
for package in ./classifier/... ./policy/...; do
	found=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} imports {{.}}{{"\n"}}{{end}}' "$package" |
		grep -E " imports $module/loader" | grep -v " imports $module/loader/flow\$" || true)
	if [ -n "$found" ]; then
		printf '%s\n  (%s)\n' "$found" "$plain" >&2
		failed=1
	fi
done

# loader and policy must build without cgo.
CGO_ENABLED=0 go build ./loader/... ./policy/... || failed=1
# And nothing but the classifier may use it.
found=$(go list -f '{{if .CgoFiles}}{{.ImportPath}} uses cgo{{end}}' ./... || true)
if [ -n "$found" ]; then
	echo "$found" >&2
	failed=1
fi
found=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} imports {{.}}{{"\n"}}{{end}}' ./... |
	grep -E ' imports github.com/yalue/onnxruntime_go$' | grep -v "^$module/classifier imports" || true)
if [ -n "$found" ]; then
	printf '%s\n  (only the classifier may)\n' "$found" >&2
	failed=1
fi
exit "$failed"
