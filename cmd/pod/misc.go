// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"fmt"
	"maps"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
)

func newMetrics(a *app) *cobra.Command {
	var out output
	var pattern string
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the agent's metrics", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			re, err := regexp.Compile(pattern)
			if err != nil {
				return fmt.Errorf("invalid pattern: %w", err)
			}
			all, err := a.client().Metrics(c.Context())
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(m api.Metric) bool { return !re.MatchString(m.Name) })
			if done, err := out.print(a.w.Out, all); done {
				return err
			}
			t := table(a.w.Out, 2)
			fmt.Fprintln(t, "Metric\tLabels\tValue")
			for _, m := range all {
				var labels []string
				for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
					labels = append(labels, k+"="+strconv.Quote(m.Labels[k]))
				}
				fmt.Fprintf(t, "%s\t%s\t%f\n", m.Name, strings.Join(labels, " "), m.Value)
			}
			return t.Flush()
		},
	}
	out.bind(list)
	list.Flags().StringVarP(&pattern, "match-pattern", "p", "", "only metrics whose name matches this regular expression")
	return group("metrics", "Show metrics", list)
}

func newConfig(a *app) *cobra.Command {
	var out output
	var all bool
	c := &cobra.Command{
		Use: "config [OPTION]", Short: "Show what the agent runs with", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := a.client().Config(c.Context())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if strings.Contains(args[0], "=") {
					return fmt.Errorf("options cannot be set at run time: use `lash config set`, or `lash upgrade --set` to keep it")
				}
				v, ok := cfg.Options[args[0]]
				if !ok {
					return fmt.Errorf("no option %q", args[0])
				}
				_, err := fmt.Fprintln(a.w.Out, v)
				return err
			}
			if done, err := out.print(a.w.Out, cfg); done {
				return err
			}
			t := table(a.w.Out, 2)
			fmt.Fprintln(t, "#### Read-only configurations ####")
			for _, k := range slices.Sorted(maps.Keys(cfg.Options)) {
				if v := cfg.Options[k]; v != "" || all {
					fmt.Fprintf(t, "%s\t: %s\n", k, v)
				}
			}
			return t.Flush()
		},
	}
	out.bind(c)
	c.Flags().BoolVarP(&all, "all", "a", false, "options without a value, too")
	return c
}

// versions is the answer of `version`.
type versions struct {
	Client api.VersionInfo
	Daemon *api.VersionInfo `json:"Daemon,omitempty"`
}

func newVersion(a *app) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "version", Short: "Show the versions of this program and of the agent", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			v := versions{Client: api.VersionInfo{
				Version: api.CiliumVersion, Lash: api.Version, Revision: api.Revision,
				GoRuntimeVersion: runtime.Version(), Arch: runtime.GOOS + "/" + runtime.GOARCH,
			}}
			cfg, err := a.client().Config(c.Context())
			if err == nil {
				v.Daemon = &cfg.Daemon
			}
			if done, perr := out.print(a.w.Out, v); done {
				return perr
			}
			fmt.Fprintln(a.w.Out, "Client: "+versionLine(v.Client))
			if err != nil {
				return fmt.Errorf("version of the daemon: %w", err)
			}
			fmt.Fprintln(a.w.Out, "Daemon: "+versionLine(*v.Daemon))
			return nil
		},
	}
	out.bind(c)
	return c
}

func versionLine(v api.VersionInfo) string {
	s := v.Version + " (Lash " + v.Lash + ")"
	if v.Revision != "" {
		s += " " + v.Revision
	}
	return s + " go version " + v.GoRuntimeVersion + " " + v.Arch
}

func newMap(a *app) *cobra.Command {
	var out output
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the BPF maps", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			maps, err := a.client().Maps(c.Context())
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, maps); done {
				return err
			}
			t := table(a.w.Out, 2)
			fmt.Fprintln(t, "Name\tType\tNum entries\tMax entries\tKey\tValue\t")
			for _, m := range maps {
				n := "-"
				if m.Entries >= 0 {
					n = strconv.FormatInt(m.Entries, 10)
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%d\t\n", m.Name, m.Type, n, m.MaxEntries, m.KeySize, m.ValueSize)
			}
			return t.Flush()
		},
	}
	out.bind(list)
	var getOut output
	get := &cobra.Command{
		Use: "get NAME", Short: "Show the entries of a BPF map", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			m, err := a.client().Map(c.Context(), args[0])
			if err != nil {
				return err
			}
			if done, err := getOut.print(a.w.Out, m); done {
				return err
			}
			t := table(a.w.Out, 2)
			fmt.Fprintln(t, "Key\tValue\t")
			for _, e := range m.Cache {
				fmt.Fprintf(t, "%s\t%s\t\n", e.Key, e.Value)
			}
			return t.Flush()
		},
	}
	getOut.bind(get)
	return group("map", "Show BPF maps", list, get)
}
