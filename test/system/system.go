// SPDX-License-Identifier: Apache-2.0

// Package system holds tests of earlydrop's packages and of its service. They run as root
// in a Debian with systemd that test/kernels boots, and nowhere else: they install, upgrade
// and remove.
package system
