// SPDX-License-Identifier: Apache-2.0

package values

import (
	_ "embed"
	"slices"
	"strings"
	"sync"
)

// known lists the value keys of Cilium's 1.16 chart with their defaults as JSON, one a line; "any"
// marks keys (and subtrees) of parts that are off unless another key switches them on.
//
//go:embed known.txt
var known string

// table is every key by path; built once and never changed.
var table = sync.OnceValue(func() map[string]Key {
	m := map[string]Key{}
	defaults := map[string]string{}
	for line := range strings.Lines(known) {
		path, def, _ := strings.Cut(strings.TrimSpace(line), " ")
		if path == "" {
			continue
		}
		defaults[path] = def
		k := Key{Path: path, Type: Any, Default: def, Class: Neutral}
		if def == "any" {
			k.Default = ""
		}
		m[path] = k
	}
	for _, k := range others {
		if k.Class == Unsupported {
			k.Default = defaults[k.Path]
		}
		m[k.Path] = k
	}
	for _, k := range Table() {
		m[k.Path] = k
	}
	return m
})

// Table is the supported keys, in the order of values.yaml.
func Table() []Key { return slices.Concat(general, pods, operator) }

// Paths lists every key that is known, whatever its class, sorted.
func Paths() []string {
	out := make([]string, 0, len(table()))
	for p := range table() {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

// Lookup finds the row that a path falls under: its own row, or the nearest row above it that is
// open (a map, or a whole subtree). The class of what is not found is Unknown.
func Lookup(path string) Key {
	for p := path; p != ""; {
		if k, ok := table()[p]; ok && (p == path || k.open()) {
			return k
		}
		i := strings.LastIndexByte(p, '.')
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return Key{Path: path, Class: Unknown}
}

// open says whether anything may stand below the key.
func (k Key) open() bool {
	switch k.Class {
	case Supported:
		return k.Type == Map
	case Superseded:
		return true
	case Neutral:
		return k.Default == "" || k.Default == "{}"
	}
	return false
}

// inner says whether path is a prefix of known keys.
func inner(path string) bool {
	for p := range table() {
		if strings.HasPrefix(p, path+".") {
			return true
		}
	}
	return false
}

// Nearest is the known key that looks most like path, or "" if none does.
func Nearest(path string) string {
	// At equal distance a key that works is the better guess.
	return nearest(path, Paths(), func(a, b string) bool { return table()[a].Class < table()[b].Class })
}

// NearestOf is the word of a list that looks most like word, or "" if none does.
func NearestOf(word string, list []string) string {
	return nearest(word, list, func(string, string) bool { return false })
}

func nearest(word string, list []string, better func(a, b string) bool) string {
	best, bestDist := "", len(word)/3+2
	for _, p := range list {
		d := distance(strings.ToLower(word), strings.ToLower(p), bestDist)
		if d < bestDist || d == bestDist && best != "" && better(p, best) {
			best, bestDist = p, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with a neighbour that turn
// a into b (optimal string alignment); it may return limit early when the number is no smaller.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d >= limit || -d >= limit {
		return limit
	}
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
