// SPDX-License-Identifier: Apache-2.0

// Package guard keeps real-time threads from standing in the way of what they wait for.
package guard
