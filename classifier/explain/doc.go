// SPDX-License-Identifier: Apache-2.0

// Package explain says which parts of a capture the answer of a model depends on.
//
// It replaces each header field, each 16 bytes of payload, and each packet's length,
// direction and time by random values, several times, and measures by how much the
// probability falls that is asked about (occlusion). What comes out is a list of parts
// with their effects, and maps of the 32x32 bytes: as text for a terminal, as a picture,
// and as a page for browsers.
//
// Parts that say the same stand in for one another: each alone may have little effect.
package explain
