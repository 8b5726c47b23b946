// SPDX-License-Identifier: Apache-2.0

// Command lash is the CLI.
package main

import (
	"os"

	"lash.internal/lash/cmd/cli"
)

func main() { os.Exit(cli.Main(cli.OS())) }
