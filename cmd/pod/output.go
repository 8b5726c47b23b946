// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"k8s.io/client-go/util/jsonpath"
	"sigs.k8s.io/yaml"
)

// output is the flag -o of the list and get commands: empty for text, json, yaml or
// jsonpath='{...}'.
type output string

func (o *output) bind(c *cobra.Command) {
	c.Flags().StringVarP((*string)(o), "output", "o", "", "json| yaml| jsonpath='{...}'")
}

// check says what is wrong with the flag, for commands that take long before they print.
func (o output) check() error {
	if o == "" || o == "json" || o == "yaml" || strings.HasPrefix(string(o), "jsonpath") {
		return nil
	}
	return fmt.Errorf("invalid output %q: want json, yaml or jsonpath='{...}'", string(o))
}

// print writes v in the chosen form and says whether it did; text is left to the caller.
func (o output) print(w io.Writer, v any) (bool, error) {
	switch {
	case o == "":
		return false, nil
	case o == "json":
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return true, enc.Encode(v)
	case o == "yaml":
		b, err := yaml.Marshal(v)
		if err != nil {
			return true, fmt.Errorf("encode yaml: %w", err)
		}
		_, err = w.Write(b)
		return true, err
	case strings.HasPrefix(string(o), "jsonpath"):
		return true, printJSONPath(w, strings.TrimPrefix(strings.TrimPrefix(string(o), "jsonpath"), "="), v)
	}
	return true, o.check()
}

func printJSONPath(w io.Writer, template string, v any) error {
	// The path walks JSON names, so it runs over the decoded JSON form.
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode json: %w", err)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		return fmt.Errorf("decode json: %w", err)
	}
	p := jsonpath.New("output").AllowMissingKeys(true)
	if !strings.HasPrefix(template, "{") {
		template = "{" + template + "}"
	}
	if err := p.Parse(template); err != nil {
		return fmt.Errorf("jsonpath %s: %w", template, err)
	}
	if err := p.Execute(w, tree); err != nil {
		return fmt.Errorf("jsonpath %s: %w", template, err)
	}
	_, err = fmt.Fprintln(w)
	return err
}

// table returns a writer that aligns tab-separated columns.
func table(w io.Writer, minWidth int) *tabwriter.Writer {
	return tabwriter.NewWriter(w, minWidth, 0, 3, ' ', 0)
}
