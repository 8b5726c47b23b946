// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Confidence is what netperf's -i and -I ask for: repeat until the interval around the mean throughput
// is narrow enough. Its interval assumes a normal distribution; stats has one that does not.
type Confidence struct {
	Level      int     // percent, 0: one iteration
	Width      float64 // of the whole interval, as a share of the mean; -1 without a Level
	Min, Max   int     // iterations
	Iterations int     // that were made
	Reached    float64 // width that was reached, in percent; -1 without a Level
}

// Limits of the iterations, the original's.
const (
	minIterations = 3
	maxIterations = 30
)

// single is one iteration without confidence.
func single() Confidence { return Confidence{Width: -1, Reached: -1, Min: 1, Max: 1} }

// setIterations reads "max" or "max,min".
func (c *Confidence) setIterations(arg string) error {
	most, least, both := strings.Cut(arg, ",")
	var errMin error
	var errMax error
	if c.Max, errMax = strconv.Atoi(most); errMax == nil && both {
		c.Min, errMin = strconv.Atoi(least)
	} else {
		c.Min = min(c.Max, minIterations)
	}
	if err := errors.Join(errMin, errMax); err != nil {
		return fmt.Errorf("-i %q: use MAX or MAX,MIN: %w", arg, err)
	}
	if c.Min < minIterations || c.Max < c.Min || c.Max > maxIterations {
		return fmt.Errorf("-i %q: iterations go from %d to %d", arg, minIterations, maxIterations)
	}
	if c.Level == 0 {
		c.Level, c.Width = 99, 0.05
	}
	return nil
}

// setInterval reads "level" or "level,width", both in percent.
func (c *Confidence) setInterval(arg string) error {
	level, width, both := strings.Cut(arg, ",")
	n, err := strconv.Atoi(level)
	if err != nil || n != 95 && n != 99 {
		return fmt.Errorf("-I %q: the level is 95 or 99 percent", arg)
	}
	c.Level, c.Width = n, 0.05
	if both {
		w, err := strconv.ParseFloat(width, 64)
		if err != nil || w <= 0 || w > 100 {
			return fmt.Errorf("-I %q: the width is a number of percent", arg)
		}
		c.Width = w / 100
	}
	if c.Max <= 1 {
		c.Min, c.Max = minIterations, 10
	}
	return nil
}

// Two-sided quantiles of Student's t distribution for 1 to 29 degrees of freedom, from the tables of
// any book of statistics.
var (
	t95 = []float64{
		12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
		2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045,
	}
	t99 = []float64{
		63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947,
		2.921, 2.898, 2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756,
	}
)

// done takes the values of all iterations so far and says whether they are enough.
func (c *Confidence) done(values []float64) bool {
	n := len(values)
	c.Iterations = n
	if c.Level == 0 {
		return true
	}
	if n < 2 {
		return false
	}
	mean, squares := meanOf(values), 0.0
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	t := t95
	if c.Level == 99 {
		t = t99
	}
	width := 2 * t[min(n-1, len(t))-1] * math.Sqrt(squares/float64(n)/float64(n-1)) / mean
	c.Reached = 100 * width
	return n >= c.Max || n >= c.Min && width <= c.Width
}

func meanOf(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}
