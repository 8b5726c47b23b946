// SPDX-License-Identifier: Apache-2.0

package values

import (
	"errors"
	"testing"

	"sigs.k8s.io/yaml"
)

// FuzzCheck: whatever a user gives, the answer is a list of problems, each of a known kind.
func FuzzCheck(f *testing.F) {
	f.Add([]byte("kubeProxyReplacment: true"))
	f.Add([]byte("{debug: {enabled: 5}, MTU: 1.5, tolerations: x, devices: [eth0], ipam: null, '': 1, a.b: {c: d}}"))
	f.Add([]byte("{hubble: {metrics: {enabled: '{tcp,drop}'}}, bpf: {masquerade: true}, extraConfig: {a: [1]}, global: {x: 1}}"))
	f.Add([]byte("{cluster: {id: 99999999999999999999}, labels: .nan, routingMode: [tunnel], kubeProxyReplacement: yes}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		m := map[string]any{}
		if yaml.Unmarshal(text, &m) != nil {
			return
		}
		notices, err := Check(m)
		for _, n := range notices {
			if n == "" {
				t.Error("an empty notice")
			}
		}
		if err == nil {
			return
		}
		joined, ok := err.(interface{ Unwrap() []error })
		if !ok {
			t.Fatalf("one problem is %T", err)
		}
		for _, e := range joined.Unwrap() {
			if e.Error() == "" || (!errors.Is(e, ErrUnknown) && !errors.Is(e, ErrUnsupported) && !errors.Is(e, ErrType)) {
				t.Errorf("a problem of no kind: %v", e)
			}
		}
	})
}

// FuzzNearest: a suggestion is a key that exists.
func FuzzNearest(f *testing.F) {
	f.Add("kubeProxyReplacment")
	f.Add("")
	f.Add("ipam.operator.")
	f.Fuzz(func(t *testing.T, path string) {
		if n := Nearest(path); n != "" && Lookup(n).Class == Unknown {
			t.Errorf("%q is like %q, which does not exist", path, n)
		}
	})
}
