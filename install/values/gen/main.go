// SPDX-License-Identifier: Apache-2.0

// Command gen writes the chart's values.yaml and values.schema.json from the table.
package main

import (
	"fmt"
	"os"

	"lash.internal/lash/install/values"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	if err := os.WriteFile("../../chart/values.yaml", values.YAML(), 0o644); err != nil {
		return err
	}
	s, err := values.Schema()
	if err != nil {
		return err
	}
	return os.WriteFile("../../chart/values.schema.json", s, 0o644)
}
