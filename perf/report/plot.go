// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"html"
	"io"
	"math"
	"slices"
	"strings"

	"lash.internal/lash/perf/netperf"
)

// Plot is a picture of one metric: lines over the number of Services, or one row for each path.
type Plot struct {
	Title string
	X, Y  string // axes
	Lines []Line
	// Rows says that each line is a path with one point, to be drawn as a row.
	Rows bool
}

// Line is the points of one thing that was measured.
type Line struct {
	Name   string
	Points []Point
}

// Point is a median with its interval.
type Point struct{ X, Y, Low, High float64 }

// Plots are the pictures of a report: one for each test, of its main metric.
func (r *Report) Plots() []Plot {
	var tests []netperf.Test
	for _, s := range r.Series {
		if !slices.Contains(tests, s.Test) {
			tests = append(tests, s.Test)
		}
	}
	var out []Plot
	for _, t := range tests {
		m := Main(t)
		p := Plot{Title: fmt.Sprintf("%s, %s", t, m.Name), X: "Services", Y: m.Unit, Rows: r.Kind != KindServices}
		if !p.Rows && slices.ContainsFunc(r.Series, func(s *Series) bool { return s.ServicePorts != s.Services }) {
			p.X = "service ports"
		}
		for _, s := range r.Series {
			if s.Test != t || len(s.Results()) == 0 {
				continue
			}
			e := s.Estimate(m)
			pt := Point{float64(s.ServicePorts), e.Median, e.Low, e.High}
			name := s.lineName(len(r.Clusters) > 1)
			i := slices.IndexFunc(p.Lines, func(l Line) bool { return l.Name == name })
			if i < 0 {
				p.Lines = append(p.Lines, Line{Name: name})
				i = len(p.Lines) - 1
			}
			p.Lines[i].Points = append(p.Lines[i].Points, pt)
		}
		if len(p.Lines) > 0 {
			out = append(out, p)
		}
	}
	return out
}

func (s *Series) lineName(cluster bool) string {
	name := s.Scenario
	if s.Placement != "" {
		name += " " + s.Placement
	}
	if s.Streams > 1 {
		name += fmt.Sprintf(" x%d", s.Streams)
	}
	if s.Family == "IPv6" {
		name += " IPv6"
	}
	if cluster {
		name = s.Cluster + " " + name
	}
	return name
}

// Size of a picture, in pixels, and its margins.
const (
	plotWidth, plotHeight = 860, 420
	left, right           = 70, 20
	top, bottom           = 40, 50
	rowHeight             = 22
	rowLabels             = 320
)

// colours can be told apart by people who see few of them (the set of M. Okabe and K. Ito).
var colours = []string{"#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999900"}

// ticks are round numbers from 0 to at least the limit.
func ticks(limit float64) []float64 {
	if !(limit > 0) || math.IsInf(limit, 0) {
		return []float64{0, 1}
	}
	step := math.Pow(10, math.Floor(math.Log10(limit/4)))
	for _, f := range []float64{1, 2, 5, 10} {
		if limit/(step*f) <= 6 {
			step *= f
			break
		}
	}
	var out []float64
	for v := 0.0; ; v += step {
		out = append(out, v)
		if v >= limit {
			return out
		}
	}
}

func (p *Plot) limits() (x, y float64) {
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			x, y = max(x, pt.X), max(y, pt.High)
		}
	}
	return max(x, 1), y
}

type drawing struct{ b strings.Builder }

func (d *drawing) add(format string, args ...any) { fmt.Fprintf(&d.b, format+"\n", args...) }

func (d *drawing) text(x, y float64, anchor, class, words string) {
	d.add(`<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`, x, y, anchor, class, html.EscapeString(words))
}

const plotStyle = `<style>text{font:12px sans-serif;fill:#222}.t{font-weight:bold;font-size:14px}.g{stroke:#ddd}.a{stroke:#444}</style>`

// SVG is the picture as an element of SVG.
func (p *Plot) SVG() string {
	if p.Rows {
		return p.rows()
	}
	d := &drawing{}
	height := plotHeight + 18*len(p.Lines)
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`,
		plotWidth, height, plotWidth, height, html.EscapeString(p.Title))
	d.add(`<rect width="100%%" height="100%%" fill="#fff"/>%s`, plotStyle)
	d.text(left, 22, "start", "t", p.Title)
	mx, my := p.limits()
	ys := ticks(my)
	my = ys[len(ys)-1]
	px := func(x float64) float64 { return left + x/mx*(plotWidth-left-right) }
	py := func(y float64) float64 { return top + (1-y/my)*(plotHeight-top-bottom) }
	for _, y := range ys {
		d.add(`<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" class="g"/>`, left, plotWidth-right, py(y), py(y))
		d.text(left-6, py(y)+4, "end", "", fmt.Sprintf("%g", y))
	}
	d.text(left-6, top-10, "end", "", p.Y)
	last := math.Inf(-1)
	for _, x := range p.xs() {
		if px(x)-last < 34 {
			continue // the labels would overlap
		}
		last = px(x)
		d.add(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" class="a"/>`, px(x), px(x), plotHeight-bottom, plotHeight-bottom+5)
		d.text(px(x), plotHeight-bottom+18, "middle", "", fmt.Sprintf("%g", x))
	}
	d.text(plotWidth-right, plotHeight-bottom+36, "end", "", p.X)
	for i, l := range p.Lines {
		colour := colours[i%len(colours)]
		var path []string
		for _, pt := range l.Points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", px(pt.X), py(pt.Y)))
			d.add(`<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s"/>`, px(pt.X), px(pt.X), py(pt.Low), py(min(pt.High, my)), colour)
			d.add(`<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"><title>%s: %g %s at %g, 95 %% interval %g to %g</title></circle>`,
				px(pt.X), py(pt.Y), colour, html.EscapeString(l.Name), pt.Y, p.Y, pt.X, pt.Low, pt.High)
		}
		d.add(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.Join(path, " "), colour)
		y := float64(plotHeight + 18*i)
		d.add(`<rect x="%d" y="%.1f" width="18" height="4" fill="%s"/>`, left, y-5, colour)
		d.text(left+26, y, "start", "", l.Name)
	}
	d.add("</svg>")
	return d.b.String()
}

func (p *Plot) xs() []float64 {
	var out []float64
	for _, l := range p.Lines {
		for _, pt := range l.Points {
			if !slices.Contains(out, pt.X) {
				out = append(out, pt.X)
			}
		}
	}
	slices.Sort(out)
	return out
}

// rows draws one row for each path: its median, and the interval as a line.
func (p *Plot) rows() string {
	d := &drawing{}
	height := top + bottom + rowHeight*len(p.Lines)
	d.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" role="img" aria-label="%s">`,
		plotWidth, height, plotWidth, height, html.EscapeString(p.Title))
	d.add(`<rect width="100%%" height="100%%" fill="#fff"/>%s`, plotStyle)
	d.text(10, 22, "start", "t", p.Title)
	_, mx := p.limits()
	xs := ticks(mx)
	mx = xs[len(xs)-1]
	px := func(x float64) float64 { return rowLabels + x/mx*(plotWidth-rowLabels-right-20) }
	base := float64(top + rowHeight*len(p.Lines))
	for _, x := range xs {
		d.add(`<line x1="%.1f" x2="%.1f" y1="%d" y2="%.1f" class="g"/>`, px(x), px(x), top, base)
		d.text(px(x), base+16, "middle", "", fmt.Sprintf("%g", x))
	}
	d.text(plotWidth-right, base+34, "end", "", p.Y)
	for i, l := range p.Lines {
		y := float64(top + rowHeight*i + rowHeight/2)
		pt := l.Points[0]
		d.text(rowLabels-10, y+4, "end", "", l.Name)
		d.add(`<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="%s" stroke-width="2"/>`, px(pt.Low), px(pt.High), y, y, colours[0])
		d.add(`<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s: %g %s, 95 %% interval %g to %g</title></circle>`,
			px(pt.Y), y, colours[0], html.EscapeString(l.Name), pt.Y, p.Y, pt.Low, pt.High)
	}
	d.add("</svg>")
	return d.b.String()
}

// WriteSVG writes the pictures of the report as one file, one above the other.
func (r *Report) WriteSVG(w io.Writer) error {
	plots := r.Plots()
	var b strings.Builder
	y := 0
	for _, p := range plots {
		svg := p.SVG()
		var vw, h int
		if _, err := fmt.Sscanf(svg, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d"`, &vw, &h); err != nil {
			return fmt.Errorf("size of a plot: %w", err)
		}
		b.WriteString(strings.Replace(svg, "<svg ", fmt.Sprintf(`<svg y="%d" `, y), 1))
		y += h
	}
	_, err := fmt.Fprintf(w, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\">\n%s</svg>\n", plotWidth, y, plotWidth, y, b.String())
	return err
}
