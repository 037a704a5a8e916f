// SPDX-License-Identifier: Apache-2.0

package classifier

// RandomSample is for the tests that import the backend, which this package can't.
var RandomSample = randomSample
