// SPDX-License-Identifier: Apache-2.0

package figures

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"text/tabwriter"
)

// background is the label of traffic that no rule is about.
const background = "background"

// Print writes, for people, how much of each label is detected, and of what is of none.
// threshold returns that of a label.
func (f *Figures) Print(w io.Writer, labels []string, threshold func(label string) string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "label\tthreshold\tdetected by a rule over all labels (%g)\tby a rule over this one (threshold)\n", f.MinConfidence)
	row := func(name, threshold string, detected, alone *Share) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", name, threshold, detected, alone)
	}
	detected := f.Detected()
	for _, label := range labels {
		if label == background { // what is detected of it is below
			continue
		}
		of, alone := detected[label], f.Single[label][label]
		row(label, threshold(label), &of, &alone)
		if inside, outside, ok := f.ByTLS(label); ok {
			row("- outside TLS", "", &outside, nil)
			row("- inside TLS", "", &inside, nil)
		}
	}
	t.Flush()

	// What is detected of these is a false positive.
	fmt.Fprintf(w, "\nfalse positives of a rule over all labels (%g)\n", f.MinConfidence)
	for _, group := range slices.Sorted(maps.Keys(detected)) {
		if !slices.Contains(labels, group) && group != Ordinary {
			of := detected[group]
			fmt.Fprintf(t, "%s\t%s\n", group, &of)
		}
	}
	of := detected[Ordinary]
	fmt.Fprintf(t, "all that is ordinary\t%s\n", &of)
	t.Flush()
}
