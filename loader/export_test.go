// SPDX-License-Identifier: Apache-2.0

package loader

// EnterNamespace is for the examples.
var EnterNamespace = enterNamespace
