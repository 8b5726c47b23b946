// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"

	helmvalues "helm.sh/helm/v3/pkg/cli/values"
	"helm.sh/helm/v3/pkg/getter"
	"sigs.k8s.io/yaml"
)

// UserValues are the value options of a command line, as Helm has them. They are applied in the
// order of the fields; later ones win.
type UserValues struct {
	Files     []string // YAML files; "-" is the standard input
	JSON      []string // key=JSON
	Set       []string // key=value
	SetString []string // key=text
	SetFile   []string // key=file
	Literal   []string // key=text without any escape
}

// Merge reads and merges them.
func (u UserValues) Merge() (map[string]any, error) {
	o := helmvalues.Options{
		ValueFiles: u.Files, JSONValues: u.JSON, Values: u.Set,
		StringValues: u.SetString, FileValues: u.SetFile, LiteralValues: u.Literal,
	}
	m, err := o.MergeValues(getter.Providers{})
	if err != nil {
		return nil, fmt.Errorf("reading the values: %w", err)
	}
	return m, nil
}

// Empty says whether no value was given.
func (u UserValues) Empty() bool {
	return len(u.Files)+len(u.JSON)+len(u.Set)+len(u.SetString)+len(u.SetFile)+len(u.Literal) == 0
}

// YAML is values as text.
func YAML(m map[string]any) (string, error) {
	out, err := yaml.Marshal(m)
	if err != nil {
		return "", fmt.Errorf("writing the values: %w", err)
	}
	return string(out), nil
}
