// SPDX-License-Identifier: Apache-2.0

package policy

import "github.com/earlydrop/earlydrop/policy/yamlfile"

// kind is that of policy files.
var kind = yamlfile.Kind{
	What: "a policy file", Empty: "file holds no policy; write at least \"mode: monitor\"",
	MaxBytes: MaxFileBytes, TooLarge: "; put long lists of networks into files of their own (sets)",
	MaxKeys: 64, TooMany: "a policy has seven keys, and a rule some twenty",
}

// decoder turns the syntax tree of a file into a Policy. It works on the tree and not
// on structs, because every mistake, missing keys included, is to be shown with its
// place. What it reads is in these files: tree.go mappings, lists
// and plain values, matches.go the allow-list and exceptions, sets.go
// the files of sets, rules.go and evidence.go the rules.
type decoder struct {
	*yamlfile.File
	model *Model // nil: not known
	sets  map[string]*Set
	with  int // rules with evidence so far

	exempted int // networks of entries with exempt: true so far
}
