#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Holds the rules of who imports whom: data goes one way, the packages share plain
# types only, and cgo stays in one place. Prints each breach and fails.
set -eu

module=github.com/earlydrop/earlydrop
failed=0

# One line per import, tests left out: "PACKAGE imports PACKAGE".
# shellcheck disable=SC2016
edges=$(go list -f '{{$p := .ImportPath}}{{range .Imports}}{{$p}} imports {{.}}{{"\n"}}{{end}}' ./...)

# forbid FROM TO EXCEPT WHY: extended regular expressions of package paths.
forbid() {
	found=$(echo "$edges" | grep -E "^$1(/[^ ]*)? imports $2(/[^ ]*)?\$" | grep -vE "$3" || true)
	if [ -n "$found" ]; then
		printf '%s\n  (%s)\n' "$found" "$4" >&2
		failed=1
	fi
}

forbid "$module/loader" "$module/(classifier|policy|models|cmd|test)" '^$' "data goes one way"
forbid "$module/classifier" "$module/(loader|policy|cmd|test)" " $module/loader/flow(/headers)?\$" "loader/flow is what they share"
forbid "$module/policy" "$module/(loader|classifier|models|cmd|test)" " $module/loader/flow\$" "loader/flow is what they share"
forbid "$module" 'github.com/yalue/onnxruntime_go' "^$module/classifier imports" "only the classifier may use cgo"

# loader and policy must build without cgo.
CGO_ENABLED=0 go build ./loader/... ./policy/... || failed=1
exit "$failed"
