// SPDX-License-Identifier: Apache-2.0

package event

import _ "embed"

// Schema is the JSON Schema (draft 2020-12) of what this package writes. Its file is
// named after its version. Fields may be added to a version. Where one changes its
// meaning or its type, or goes, there is a new one.
//
//go:embed schema/v1.json
var Schema []byte
