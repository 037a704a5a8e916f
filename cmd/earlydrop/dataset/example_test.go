// SPDX-License-Identifier: Apache-2.0

package dataset_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/earlydrop/earlydrop/cmd/earlydrop/dataset"
)

// Samples of two classes, from a manifest.
func Example() {
	dir, err := os.MkdirTemp("", "dataset-*")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	captures, err := filepath.Abs("../../../test/testdata")
	if err != nil {
		fmt.Println(err)
		return
	}
	manifest := filepath.Join(dir, "manifest.tsv")
	table := fmt.Sprintf("path\tlabel\tgroup\n%s/ssh.pcap\tssh\tlab\n%[1]s/obfs4.pcap\tobfs4\tlab\n", captures)
	if err := os.WriteFile(manifest, []byte(table), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	d, err := dataset.Build(context.Background(), dataset.Config{Manifests: []string{manifest}, Out: filepath.Join(dir, "set")})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(d.Samples, "samples:", d.Labels)
	// Output: 10 samples: map[obfs4:5 ssh:5]
}
