// SPDX-License-Identifier: Apache-2.0

package netperf

import (
	"errors"
	"fmt"
	"strings"
)

// option is a flag on a command line.
type option struct {
	name  byte
	value string
}

// getopt splits a command line as getopt(3) does: spec has the letters of the flags, a colon behind
// those that take a value, two behind those whose value may be missing. Unlike there, a missing value is
// told from the next flag by its dash. Parsing ends at "--" or at the first word that is no flag; the
// rest is returned.
func getopt(args []string, spec string) (opts []option, rest []string, err error) {
	for i := 0; i < len(args); i++ {
		arg := args[i]
		if arg == "--" {
			return opts, args[i+1:], nil
		}
		if len(arg) < 2 || arg[0] != '-' {
			return opts, args[i:], nil
		}
		for j := 1; j < len(arg); j++ {
			at := strings.IndexByte(spec, arg[j])
			if at < 0 || arg[j] == ':' {
				return nil, nil, fmt.Errorf("unknown flag -%c", arg[j])
			}
			o := option{name: arg[j]}
			if !strings.HasPrefix(spec[at+1:], ":") {
				opts = append(opts, o)
				continue
			}
			optional := strings.HasPrefix(spec[at+1:], "::")
			takes := func(next string) bool { return !optional || next == "" || next[0] != '-' }
			switch {
			case j+1 < len(arg):
				o.value = arg[j+1:]
			case i+1 < len(args) && args[i+1] != "--" && takes(args[i+1]):
				i++
				o.value = args[i]
			case !optional:
				return nil, nil, fmt.Errorf("flag -%c needs a value", arg[j])
			}
			opts = append(opts, o)
			break
		}
	}
	return opts, nil, nil
}

// errHelp says that the help was asked for and printed.
var errHelp = errors.New("help")

// refusal is the error about a flag of netperf's that has no meaning here.
func refusal(name byte, why string) error {
	return fmt.Errorf("flag -%c is not supported: %s", name, why)
}
