// SPDX-License-Identifier: Apache-2.0

package nearest

import (
	"strings"
	"testing"
)

func TestWordFindsTheCloseOneOnly(t *testing.T) {
	keys := []string{"name", "class", "min_confidence", "action", "ttl", "except"}
	tests := []struct {
		word, want string
	}{
		{"clas", "class"},
		{"calss", "class"}, // swapped neighbours are one edit
		{"classes", "class"},
		{"Class", "class"},
		{"min-confidence", "min_confidence"},
		{"minconfidence", "min_confidence"},
		{"tt", ""}, // too short to guess from
		{"tlt", "ttl"},
		{"expect", "except"},
		{"banana", ""},
		{"", ""},
		{strings.Repeat("x", 1000), ""},
	}
	for _, tt := range tests {
		if got := Word(tt.word, keys); got != tt.want {
			t.Errorf("Word(%q) = %q, want %q", tt.word, got, tt.want)
		}
	}
}

func TestEdits(t *testing.T) {
	tests := []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "abc", 0},
		{"abc", "acb", 1},
		{"kitten", "sitting", 3},
		{"ca", "abc", 3}, // a swapped pair is not edited again
	}
	for _, tt := range tests {
		if got := edits([]rune(tt.a), []rune(tt.b)); got != tt.want {
			t.Errorf("edits(%q, %q) = %d, want %d", tt.a, tt.b, got, tt.want)
		}
		if got := edits([]rune(tt.b), []rune(tt.a)); got != tt.want {
			t.Errorf("edits(%q, %q) = %d, want %d", tt.b, tt.a, got, tt.want)
		}
	}
}
