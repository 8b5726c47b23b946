// SPDX-License-Identifier: Apache-2.0

// Package stats is the arithmetic of measurements: exact percentiles, the median with a confidence
// interval that assumes no distribution, the order of interleaved rounds, and a record of what else
// kept the machine busy. It does not measure anything but that.
package stats
