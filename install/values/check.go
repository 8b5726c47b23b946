// SPDX-License-Identifier: Apache-2.0

package values

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// Sentinels of what Check finds; test with errors.Is.
var (
	ErrUnknown     = errors.New("unknown value")
	ErrUnsupported = errors.New("not supported yet")
	ErrType        = errors.New("wrong type")
)

// Check judges the values that a user gave (without the chart's defaults). It returns notices on
// keys that are met in another way, and one error that joins every problem.
func Check(user map[string]any) (notices []string, err error) {
	c := checker{}
	c.walk("", user)
	return c.notices, errors.Join(c.errs...)
}

type checker struct {
	notices []string
	errs    []error
}

func (c *checker) fail(kind error, format string, args ...any) {
	c.errs = append(c.errs, &problem{kind: kind, text: fmt.Sprintf(format, args...)})
}

type problem struct {
	kind error
	text string
}

func (p *problem) Error() string { return p.text }
func (p *problem) Unwrap() error { return p.kind }

func (c *checker) walk(prefix string, m map[string]any) {
	for _, name := range slices.Sorted(maps.Keys(m)) {
		path := name
		if prefix != "" {
			path = prefix + "." + name
		}
		v := m[name]
		k := Lookup(path)
		sub, isMap := v.(map[string]any)
		switch {
		case path == "global" && isMap:
		case k.Class != Unknown:
			c.leaf(path, k, v)
		case inner(path) && isMap:
			c.walk(path, sub)
		case inner(path):
			if v != nil {
				c.fail(ErrType, "value %s: must be a map of keys such as %s, not %s", path, firstBelow(path), describe(v))
			}
		default:
			c.unknown(path)
		}
	}
}

func (c *checker) unknown(path string) {
	if n := Nearest(path); n != "" {
		c.fail(ErrUnknown, "unknown value %s: did you mean %s?", path, n)
		return
	}
	c.fail(ErrUnknown, "unknown value %s: `lash chart export DIR` writes a values.yaml with all of them", path)
}

func firstBelow(path string) string {
	for _, p := range Paths() {
		if strings.HasPrefix(p, path+".") {
			return p
		}
	}
	return path
}

func (c *checker) leaf(path string, k Key, v any) {
	switch k.Class {
	case Supported:
		if v == nil || path != k.Path { // null deletes; below an open map anything goes
			return
		}
		if !typeOK(k.Type, v) {
			c.fail(ErrType, "value %s: must be %s, not %s", path, k.Type.words(), describe(v))
			return
		}
		if s, scalar := scalarText(v); k.Enum != nil && scalar && !slices.Contains(k.Enum, s) {
			c.fail(ErrUnsupported, "value %s: %q is not supported yet: use %s", path, s, oneOf(k.Enum))
		}
	case Superseded:
		c.notices = append(c.notices, fmt.Sprintf("%s has no effect: %s", path, k.Use))
	case Neutral:
		if k.Default == "" || isOff(v) || sameAs(k.Default, v) {
			return
		}
		if k.Default == "{}" {
			c.fail(ErrUnsupported, "value %s is not supported yet: leave it out", path)
			return
		}
		c.fail(ErrUnsupported, "value %s is not supported yet: use its default, %s", path, k.Default)
	case Unsupported:
		if isOff(v) || (k.Default != "" && sameAs(k.Default, v)) {
			return
		}
		c.fail(ErrUnsupported, "value %s is not supported yet: use %s", path, k.Use)
	}
}

func (t Type) words() string {
	w := map[string]string{"bool": "true or false", "int": "a whole number", "string": "text", "list": "a list", "map": "a map"}
	var out []string
	for _, one := range strings.Split(string(t), "|") {
		out = append(out, w[one])
	}
	return strings.Join(out, " or ")
}

func oneOf(enum []string) string {
	q := make([]string, 0, len(enum))
	for _, e := range enum {
		if e != "" {
			q = append(q, e)
		}
	}
	if len(q) == 1 {
		return q[0]
	}
	return strings.Join(q[:len(q)-1], ", ") + " or " + q[len(q)-1]
}

func typeOK(t Type, v any) bool {
	if t == Any {
		return true
	}
	for _, one := range strings.Split(string(t), "|") {
		ok := false
		switch x := v.(type) {
		case bool:
			ok = one == "bool"
		case string:
			ok = one == "string"
		case []any, []string:
			ok = one == "list"
		case map[string]any:
			ok = one == "map"
		case int, int64, int32, uint16:
			ok = one == "int"
		case float64:
			ok = one == "int" && x == math.Trunc(x)
		}
		if ok {
			return true
		}
	}
	return false
}

func describe(v any) string {
	switch x := v.(type) {
	case bool:
		return fmt.Sprintf("the boolean %t", x)
	case string:
		return fmt.Sprintf("the text %q", x)
	case []any, []string:
		return "a list"
	case map[string]any:
		return "a map"
	case nil:
		return "null"
	}
	return fmt.Sprintf("the number %v", v)
}

func scalarText(v any) (string, bool) {
	switch v.(type) {
	case bool, string, int, int64, int32, float64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// isOff says whether v switches a feature off.
func isOff(v any) bool {
	switch x := v.(type) {
	case nil:
		return true
	case bool:
		return !x
	case string:
		return x == "" || x == "disabled" || x == "none" || x == "false"
	case []any:
		return len(x) == 0
	case map[string]any:
		return len(x) == 0
	}
	return false
}

// sameAs compares v with a default given as JSON; "5" and 5 are the same.
func sameAs(def string, v any) bool {
	var d any
	if yaml.Unmarshal([]byte(def), &d) != nil {
		return false
	}
	a, aok := scalarText(d)
	b, bok := scalarText(v)
	if aok && bok {
		return a == b
	}
	raw, err := yaml.Marshal(v)
	if err != nil {
		return false
	}
	var w any
	if yaml.Unmarshal(raw, &w) != nil {
		return false
	}
	return reflect.DeepEqual(d, w)
}
