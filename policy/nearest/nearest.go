// SPDX-License-Identifier: Apache-2.0

// Package nearest finds the known word that a mistyped one was meant to be.
package nearest

import "strings"

// Word returns the candidate that takes the fewest edits to get from word,
// case ignored, or "" when none is close enough for the guess to be worth
// printing. An edit is one character inserted, removed, replaced or swapped
// with its neighbour; one edit per three characters is still close. Among
// equally close candidates the first one wins.
func Word(word string, candidates []string) string {
	// Nobody mistypes a name of this length; the bound keeps a hostile file
	// from buying quadratic work.
	const longest = 64
	if word == "" || len(word) > longest {
		return ""
	}
	w := []rune(strings.ToLower(word))
	best, bestEdits := "", 0
	for _, candidate := range candidates {
		if len(candidate) > longest {
			continue
		}
		c := []rune(strings.ToLower(candidate))
		limit := (max(len(w), len(c)) + 2) / 3
		// A word of one or two letters is one edit from too many others.
		if min(len(w), len(c)) < 3 {
			limit = 0
		}
		if d := edits(w, c); d <= limit && (best == "" || d < bestEdits) {
			best, bestEdits = candidate, d
		}
	}
	return best
}

// edits is the optimal string alignment distance of a and b.
func edits(a, b []rune) int {
	before, above, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range above {
		above[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(above[j]+1, row[j-1]+1, above[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, above, row = above, row, before
	}
	return above[len(b)]
}
