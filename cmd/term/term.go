// SPDX-License-Identifier: Apache-2.0

// Package term prints for people: styles, marks, tables and progress. On anything that is not a
// terminal, or with NO_COLOR, the text is plain; colour never carries meaning alone.
package term

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/charmbracelet/lipgloss"
	"github.com/muesli/termenv"
	"golang.org/x/term"
)

// Term is one output stream and what it can show.
type Term struct {
	W     io.Writer
	TTY   bool // cursor control is possible
	Color bool
	UTF8  bool // emoji and box drawing are possible

	r *lipgloss.Renderer
}

// New looks at a stream and at the environment. Locale variables that name no UTF-8 charset turn
// emoji into ASCII marks; without any locale variable UTF-8 is assumed.
func New(w io.Writer, getenv func(string) string) *Term {
	t := &Term{W: w, UTF8: utf8Locale(getenv)}
	if f, ok := w.(*os.File); ok {
		t.TTY = term.IsTerminal(int(f.Fd())) && getenv("TERM") != "dumb"
	}
	t.Color = t.TTY
	if getenv("CLICOLOR_FORCE") != "" || getenv("FORCE_COLOR") != "" {
		t.Color = true
	}
	if getenv("NO_COLOR") != "" || getenv("CLICOLOR") == "0" {
		t.Color = false
	}
	t.r = lipgloss.NewRenderer(w)
	if t.Color {
		t.r.SetColorProfile(termenv.ANSI)
	} else {
		t.r.SetColorProfile(termenv.Ascii)
	}
	return t
}

func utf8Locale(getenv func(string) string) bool {
	for _, k := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(k); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return true
}

// marks are the emoji that messages use and what stands for them without UTF-8.
var marks = strings.NewReplacer(
	"🔮", "[?]", "ℹ️ ", "[i]", "✅", "[ok]", "❌", "[!!]", "⚠️ ", "[!]", "⌛", "[..]", "✨", "[+]",
	"♻️ ", "[~]", "🔥", "[-]", "🚀", "[>]", "🔍", "[?]", "✓", "[ok]", "✗", "[!!]", "→", "->", "…", "...",
	"¯", "-", "•", "-",
)

// Text replaces what the stream cannot show.
func (t *Term) Text(s string) string {
	if t.UTF8 {
		return s
	}
	return marks.Replace(s)
}

// Println prints one message with a newline, with marks instead of emoji where needed.
func (t *Term) Println(format string, args ...any) {
	fmt.Fprintln(t.W, t.Text(fmt.Sprintf(format, args...)))
}

func (t *Term) style(color string) lipgloss.Style {
	return t.r.NewStyle().Foreground(lipgloss.Color(color))
}

// Red is for errors.
func (t *Term) Red(s string) string { return t.style("1").Render(s) }

// Green is for what is well.
func (t *Term) Green(s string) string { return t.style("2").Render(s) }

// Yellow is for warnings.
func (t *Term) Yellow(s string) string { return t.style("3").Render(s) }

// Blue is for decoration.
func (t *Term) Blue(s string) string { return t.style("4").Render(s) }

// Magenta is for decoration.
func (t *Term) Magenta(s string) string { return t.style("5").Render(s) }

// Cyan is for what is switched off.
func (t *Term) Cyan(s string) string { return t.style("6").Render(s) }

// Bold is for headings.
func (t *Term) Bold(s string) string { return t.r.NewStyle().Bold(true).Render(s) }

// Faint is for what may be skipped.
func (t *Term) Faint(s string) string { return t.r.NewStyle().Faint(true).Render(s) }

// Width is the visible width of s in columns.
func Width(s string) int { return lipgloss.Width(s) }

// Table prints rows in columns, two or more spaces apart, as kubectl does. The header may be nil.
// Cells may hold styled text.
func (t *Term) Table(header []string, rows [][]string) {
	var all [][]string
	if header != nil {
		all = append(all, header)
	}
	all = append(all, rows...)
	var width []int
	for _, r := range all {
		for i, c := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], Width(t.Text(c)))
		}
	}
	for n, r := range all {
		var b strings.Builder
		for i, c := range r {
			c = t.Text(c)
			pad := width[i] - Width(c) + 3
			if n == 0 && header != nil {
				c = t.Bold(c)
			}
			b.WriteString(c)
			if i < len(r)-1 {
				b.WriteString(strings.Repeat(" ", pad))
			}
		}
		fmt.Fprintln(t.W, strings.TrimRight(b.String(), " "))
	}
}

// Indent puts a prefix before every line of s.
func Indent(s, prefix string) string {
	return prefix + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n"+prefix)
}
