// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"strings"

	"github.com/earlydrop/earlydrop/policy/yamlfile"
)

// Error is a mistake in a policy file, or in the file of a set.
type Error = yamlfile.Error

// someOf lists words, at most sixteen.
func someOf(words []string) string {
	if len(words) == 0 {
		return "none"
	}
	if len(words) > 16 {
		return strings.Join(words[:16], ", ") + fmt.Sprintf(" and %d more", len(words)-16)
	}
	return strings.Join(words, ", ")
}
