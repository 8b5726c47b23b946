// SPDX-License-Identifier: Apache-2.0

package sysdump

import (
	"fmt"
	"iter"
	"maps"
	"regexp"
	"strings"
	"sync"
)

// redactor takes secrets out of what is collected, and counts what it has taken out.
type redactor struct {
	mu sync.Mutex
	n  map[string]int
}

func newRedactor() *redactor { return &redactor{n: map[string]int{}} }

func (r *redactor) count(kind string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.n[kind]++
}

func (r *redactor) counts() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.n)
}

func keys[V any](m map[string]V) iter.Seq[string] { return maps.Keys(m) }

// sensitive are names of values that nobody else should see, wherever they stand.
var sensitive = regexp.MustCompile(`(?i)(passw|secret|token|credential|private[-_.]?key|api[-_.]?key|access[-_.]?key|encryption[-_.]?key|auth(orization)?$|bearer|cookie|\.key$|dockerconfig)`)

// harmless are names that look like those and are not.
var harmless = regexp.MustCompile(`(?i)(tokenExpirationSeconds|serviceAccountToken|secretName|secretRef|imagePullSecrets|identity-gc|TaintKey|tokenPath)$`)

func isSensitive(name string) bool { return sensitive.MatchString(name) && !harmless.MatchString(name) }

// object redacts an object of the API server in place.
func (r *redactor) object(o map[string]any, namespace string) {
	if m, ok := o["metadata"].(map[string]any); ok {
		delete(m, "managedFields")
		if a, ok := m["annotations"].(map[string]any); ok {
			delete(a, "kubectl.kubernetes.io/last-applied-configuration")
		}
		ns, _ := m["namespace"].(string)
		// What users give to their own programs is none of our business.
		if ns != namespace {
			r.environments(o)
		}
	}
	if o["kind"] == "Secret" {
		for _, f := range []string{"data", "stringData"} {
			if d, ok := o[f].(map[string]any); ok {
				for k, v := range d {
					d[k] = fmt.Sprintf("redacted, %d bytes", len(fmt.Sprint(v)))
					r.count("data of Secrets")
				}
			}
		}
		return
	}
	r.values(o)
}

// environments redacts all environment variables of containers.
func (r *redactor) environments(v any) {
	switch x := v.(type) {
	case map[string]any:
		if env, ok := x["env"].([]any); ok {
			for _, e := range env {
				if m, ok := e.(map[string]any); ok {
					if s, ok := m["value"].(string); ok && s != "" {
						m["value"] = "redacted"
						r.count("environment variables")
					}
				}
			}
		}
		for _, sub := range x {
			r.environments(sub)
		}
	case []any:
		for _, sub := range x {
			r.environments(sub)
		}
	}
}

// values redacts in place the texts behind sensitive names: keys of maps, and lists of pairs of
// name and value as environment variables are.
func (r *redactor) values(v any) {
	switch x := v.(type) {
	case map[string]any:
		if name, ok := x["name"].(string); ok && isSensitive(name) {
			if s, ok := x["value"].(string); ok && s != "" {
				x["value"] = "redacted"
				r.count("values with a sensitive name")
			}
		}
		for k, sub := range x {
			if isSensitive(k) {
				x[k] = r.blank(sub)
				continue
			}
			r.values(sub)
		}
	case []any:
		for _, sub := range x {
			r.values(sub)
		}
	}
}

// blank replaces every text below a sensitive name.
func (r *redactor) blank(v any) any {
	switch x := v.(type) {
	case string:
		if x == "" {
			return x
		}
		r.count("values with a sensitive name")
		return "redacted"
	case map[string]any:
		for k, sub := range x {
			x[k] = r.blank(sub)
		}
	case []any:
		for i, sub := range x {
			x[i] = r.blank(sub)
		}
	}
	return v
}

// patterns of secrets in running text: logs, command output, manifests.
var patterns = []struct {
	kind string
	re   *regexp.Regexp
	with string
}{
	{"private keys", regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`), "redacted private key"},
	{"JSON web tokens", regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*`), "redacted"},
	{"bearer tokens", regexp.MustCompile(`(?i)\b(bearer )[A-Za-z0-9._~+/=-]{8,}`), "${1}redacted"},
	{"credentials in URLs", regexp.MustCompile(`([a-z][a-z0-9+.-]*://)[^/\s:@"']+:[^/\s@"']+@`), "${1}redacted@"},
	{"passwords in text", regexp.MustCompile(`(?i)\b((?:[a-z0-9_-]*(?:passw(?:or)?d|secret|token|api[-_]?key))["']?\s?[=:]\s?["']?)([^\s"',;}]{6,})`), "${1}redacted"},
}

// text redacts what looks like a secret in running text.
func (r *redactor) text(b []byte) []byte {
	for _, p := range patterns {
		b = p.re.ReplaceAllFunc(b, func(hit []byte) []byte {
			out := p.re.ReplaceAll(hit, []byte(p.with))
			if strings.HasSuffix(string(hit), "redacted") || string(out) == string(hit) {
				return hit
			}
			r.count(p.kind)
			return out
		})
	}
	return b
}
