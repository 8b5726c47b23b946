// SPDX-License-Identifier: Apache-2.0

package values

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"

	"sigs.k8s.io/yaml"
)

//go:generate go run ./gen

// YAML is the text of the chart's values.yaml.
func YAML() []byte {
	root := &branch{}
	for _, k := range Table() {
		root.add(strings.Split(k.Path, "."), k)
	}
	var b bytes.Buffer
	b.WriteString("# SPDX-License-Identifier: Apache-2.0\n")
	b.WriteString("# Values of the chart lash. Generated from the table in install/values: edit that and run `make generate`.\n\n")
	root.write(&b, "")
	return b.Bytes()
}

// branch is a node of the tree of keys, in the order in which the table has them.
type branch struct {
	name  string
	key   *Key
	below []*branch
}

func (n *branch) add(path []string, k Key) {
	for _, c := range n.below {
		if c.name == path[0] {
			c.add(path[1:], k)
			return
		}
	}
	c := &branch{name: path[0]}
	n.below = append(n.below, c)
	if len(path) == 1 {
		c.key = &k
		return
	}
	c.add(path[1:], k)
}

func (n *branch) write(b *bytes.Buffer, indent string) {
	for _, c := range n.below {
		if c.key == nil {
			fmt.Fprintf(b, "%s%s:\n", indent, c.name)
			c.write(b, indent+"  ")
			continue
		}
		for _, line := range wrap(c.key.comment(), 110-len(indent)) {
			fmt.Fprintf(b, "%s# %s\n", indent, line)
		}
		fmt.Fprintf(b, "%s%s: %s\n", indent, c.name, c.key.Default)
	}
}

func (k *Key) comment() string {
	if len(k.Enum) == 0 {
		return k.Doc
	}
	return k.Doc + " [" + strings.ReplaceAll(strings.Join(k.Enum, ", "), ", ,", ",") + "]"
}

func wrap(s string, width int) []string {
	var lines []string
	line := ""
	for _, w := range strings.Fields(s) {
		if line != "" && len(line)+1+len(w) > width {
			lines = append(lines, line)
			line = ""
		}
		if line != "" {
			line += " "
		}
		line += w
	}
	return append(lines, line)
}

// Schema is the text of the chart's values.schema.json: what plain Helm checks values against.
func Schema() ([]byte, error) {
	root := object()
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	root["title"] = "Values of the chart lash"
	props := root["properties"].(map[string]any)
	props["global"] = map[string]any{"type": "object"}
	for _, p := range Paths() {
		k := table()[p]
		s, err := k.schema()
		if err != nil {
			return nil, fmt.Errorf("schema of %s: %w", p, err)
		}
		place(root, strings.Split(p, "."), s)
	}
	out, err := json.MarshalIndent(root, "", " ")
	return append(out, '\n'), err
}

func object() map[string]any {
	return map[string]any{"type": []string{"object", "null"}, "properties": map[string]any{}, "additionalProperties": false}
}

func place(at map[string]any, path []string, s map[string]any) {
	props, ok := at["properties"].(map[string]any)
	if !ok { // the parent is open and allows everything below
		return
	}
	if len(path) == 1 {
		if _, taken := props[path[0]]; !taken {
			props[path[0]] = s
		}
		return
	}
	sub, ok := props[path[0]].(map[string]any)
	if !ok {
		sub = object()
		props[path[0]] = sub
	}
	place(sub, path[1:], s)
}

func (k Key) schema() (map[string]any, error) {
	s := map[string]any{}
	switch k.Class {
	case Supported:
		var types []string
		names := map[string]string{"bool": "boolean", "int": "integer", "string": "string", "list": "array", "map": "object"}
		for _, t := range strings.Split(string(k.Type), "|") {
			types = append(types, names[t])
		}
		s["type"] = append(types, "null")
		s["description"] = k.Doc
		if len(k.Enum) > 0 {
			s["enum"] = k.enum()
		}
	case Superseded:
		s["description"] = "No effect: " + k.Use + "."
	case Neutral, Unsupported:
		if k.Default == "" && k.Class == Neutral {
			return s, nil
		}
		allowed := []any{nil, false, "", "disabled", "none", []any{}, map[string]any{}}
		var d any
		if err := yaml.Unmarshal([]byte(k.Default), &d); err != nil {
			return nil, err
		}
		if !isOff(d) {
			allowed = append([]any{d}, allowed...)
		}
		s["enum"] = allowed
		if k.Class == Unsupported {
			s["description"] = "Not supported yet: use " + k.Use + "."
		}
	}
	return s, nil
}

// enum is the allowed values as every type that the key takes.
func (k Key) enum() []any {
	out := []any{nil}
	for _, e := range k.Enum {
		for _, t := range strings.Split(string(k.Type), "|") {
			switch t {
			case "string":
				out = append(out, e)
			case "bool", "int":
				var v any
				if yaml.Unmarshal([]byte(e), &v) == nil {
					out = append(out, v)
				}
			}
		}
	}
	return out
}
