// SPDX-License-Identifier: Apache-2.0

package term

import (
	"fmt"
	"math"
	"strings"
)

// Line is a named line of a plot.
type Line struct {
	Name string
	X, Y []float64 // of its points, in the order of X
}

// Size of a plot in characters.
const (
	plotWidth  = 64
	plotHeight = 16
)

// Plot draws lines over a common axis that begins at 0, each with a mark of its own.
func (t *Term) Plot(title, x, y string, lines []Line) {
	marks, dot := []string{"●", "▲", "■", "◆", "○", "△", "□", "◇"}, "·"
	if !t.UTF8 {
		marks, dot = []string{"o", "x", "+", "*", "#", "@", "%", "&"}, "."
	}
	paint := []func(string) string{t.Blue, t.Red, t.Green, t.Magenta, t.Yellow, t.Cyan}
	var mx, my float64
	for _, l := range lines {
		for i := range l.X {
			mx, my = math.Max(mx, l.X[i]), math.Max(my, l.Y[i])
		}
	}
	mx, my = math.Max(mx, 1), math.Max(my, 1e-9)*1.05
	grid := make([][]string, plotHeight)
	for r := range grid {
		grid[r] = make([]string, plotWidth)
	}
	at := func(px, py float64) (row, col int) {
		return plotHeight - 1 - int(math.Round(py/my*(plotHeight-1))), int(math.Round(px / mx * (plotWidth - 1)))
	}
	for n, l := range lines {
		ink := paint[n%len(paint)]
		for i := 1; i < len(l.X); i++ {
			_, from := at(l.X[i-1], l.Y[i-1])
			_, to := at(l.X[i], l.Y[i])
			for c := from + 1; c < to; c++ {
				f := float64(c-from) / float64(to-from)
				if r, _ := at(0, l.Y[i-1]+f*(l.Y[i]-l.Y[i-1])); grid[r][c] == "" {
					grid[r][c] = ink(dot)
				}
			}
		}
	}
	for n, l := range lines {
		for i := range l.X {
			r, c := at(l.X[i], l.Y[i])
			grid[r][c] = paint[n%len(paint)](marks[n%len(marks)])
		}
	}
	t.Println("%s (%s)", t.Bold(title), y)
	for r, row := range grid {
		label := ""
		if r%5 == 0 || r == plotHeight-1 {
			label = fmt.Sprintf("%.4g", my*float64(plotHeight-1-r)/(plotHeight-1))
		}
		var b strings.Builder
		for _, cell := range row {
			if cell == "" {
				cell = " "
			}
			b.WriteString(cell)
		}
		fmt.Fprintf(t.W, "%8s |%s\n", label, strings.TrimRight(b.String(), " "))
	}
	end := fmt.Sprintf("%g %s", mx, x)
	fmt.Fprintf(t.W, "%8s +%s\n%8s  0%*s\n", "", strings.Repeat("-", plotWidth), "", plotWidth-1, end)
	for n, l := range lines {
		fmt.Fprintf(t.W, "%8s  %s %s\n", "", paint[n%len(paint)](marks[n%len(marks)]), l.Name)
	}
}
