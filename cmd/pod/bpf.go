// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/api/client"
)

// A view is a map, or several joined, in the form that a `bpf` command prints. The agent answers
// to it as /v1/map/view:NAME.
func view(c *cobra.Command, cl *client.Client, name string) (*api.BPFMap, error) {
	return cl.Map(c.Context(), "view:"+name)
}

func newBPF(a *app) *cobra.Command {
	return group("bpf", "Show the BPF maps of this node",
		group("ct", "Connection tracking", bpfCT(a)),
		group("endpoint", "Local endpoints", bpfList(a, "endpoint", "IP ADDRESS\tLOCAL ENDPOINT INFO")),
		group("frag", "Fragment tracking", bpfList(a, "frag", "FRAGMENT\tPORTS")),
		group("ipcache", "Address to identity", bpfList(a, "ipcache", "IP PREFIX/ADDRESS\tIDENTITY"), bpfIPCacheGet(a)),
		group("lb", "Load balancing", bpfLB(a)),
		group("metrics", "Packet counters", bpfMetrics(a)),
		group("nat", "Address translation", bpfNAT()),
		group("tunnel", "Tunnel endpoints", bpfList(a, "tunnel", "TUNNEL\tVALUE")),
	)
}

// bpfList prints a view as two columns; its JSON form maps each key to its values.
func bpfList(a *app, name, head string) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all entries", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := view(c, a.client(), name)
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, byKey(m)); done {
				return err
			}
			t := table(a.w.Out, 5)
			fmt.Fprintln(t, head+"\t")
			last := ""
			for i, e := range m.Cache {
				k := e.Key
				if i > 0 && k == last {
					k = ""
				}
				last = e.Key
				fmt.Fprintf(t, "%s\t%s\t\n", k, e.Value)
			}
			return t.Flush()
		},
	}
	out.bind(c)
	return c
}

func byKey(m *api.BPFMap) map[string][]string {
	out := map[string][]string{}
	for _, e := range m.Cache {
		out[e.Key] = append(out[e.Key], e.Value)
	}
	return out
}

func bpfIPCacheGet(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "get IP", Short: "Show the identity of an address", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			ip, err := netip.ParseAddr(args[0])
			if err != nil {
				return fmt.Errorf("invalid address: %w", err)
			}
			m, err := view(c, a.client(), "ipcache")
			if err != nil {
				return err
			}
			best, bits := "", -1
			for _, e := range m.Cache {
				p, err := netip.ParsePrefix(e.Key)
				if err == nil && p.Contains(ip) && p.Bits() > bits {
					best, bits = e.Value, p.Bits()
				}
			}
			if bits < 0 {
				fmt.Fprintf(a.w.Out, "%s does not map to any identity\n", ip)
				return quiet{errors.New("no entry")}
			}
			_, err = fmt.Fprintf(a.w.Out, "%s maps to identity %s\n", ip, best)
			return err
		},
	}
}

func bpfLB(a *app) *cobra.Command {
	var out output
	var frontends, backends, revnat bool
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List frontends and backends", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			name, head := "lb", "SERVICE ADDRESS\tBACKEND ADDRESS (REVNAT_ID) (SLOT)"
			switch {
			case revnat:
				name, head = "lb-revnat", "ID\tBACKEND ADDRESS (REVNAT_ID) (SLOT)"
			case backends:
				name, head = "lb-backends", "ID\tBACKEND ADDRESS"
			case frontends:
				name, head = "lb-frontends", "SERVICE ADDRESS\tID"
			}
			m, err := view(c, a.client(), name)
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, byKey(m)); done {
				return err
			}
			t := table(a.w.Out, 5)
			fmt.Fprintln(t, head+"\t")
			for i, e := range m.Cache {
				k := e.Key
				if i > 0 && m.Cache[i-1].Key == k {
					k = ""
				}
				fmt.Fprintf(t, "%s\t%s\t\n", k, e.Value)
			}
			return t.Flush()
		},
	}
	out.bind(c)
	c.Flags().BoolVar(&frontends, "frontends", false, "frontends only")
	c.Flags().BoolVar(&backends, "backends", false, "backends only")
	c.Flags().BoolVar(&revnat, "revnat", false, "reverse translation by service number")
	return c
}

func bpfCT(a *app) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "list global", Aliases: []string{"ls"}, Short: "List tracked connections", Args: cobra.RangeArgs(0, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && args[0] != "global" {
				return fmt.Errorf("there is one connection table for all endpoints: use `bpf ct list global`")
			}
			m, err := view(c, a.client(), "ct")
			if err != nil {
				return err
			}
			rows := make([]map[string]any, 0, len(m.Cache))
			for _, e := range m.Cache {
				rows = append(rows, map[string]any{"Key": e.Key, "Value": e.Fields})
			}
			if done, err := out.print(a.w.Out, rows); done {
				return err
			}
			for _, e := range m.Cache {
				fmt.Fprintln(a.w.Out, e.Key+" "+e.Value)
			}
			return nil
		},
	}
	out.bind(c)
	return c
}

func bpfNAT() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List translations",
		RunE: func(*cobra.Command, []string) error {
			return errors.New("there is no separate NAT map: translations are part of the connection table, see `bpf ct list global`")
		},
	}
}

func bpfMetrics(a *app) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List packet and byte counters", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := view(c, a.client(), "metrics")
			if err != nil {
				return err
			}
			rows := make([]map[string]string, 0, len(m.Cache))
			for _, e := range m.Cache {
				rows = append(rows, e.Fields)
			}
			if done, err := out.print(a.w.Out, rows); done {
				return err
			}
			return writeBPFMetrics(a.w.Out, rows)
		},
	}
	out.bind(c)
	return c
}

func writeBPFMetrics(w io.Writer, rows []map[string]string) error {
	cols := []string{"reason", "direction", "packets", "bytes", "line", "file"}
	t := table(w, 5)
	fmt.Fprintln(t, strings.ToUpper(strings.Join(cols, "\t")))
	for _, r := range rows {
		cells := make([]string, len(cols))
		for i, c := range cols {
			cells[i] = r[c]
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}
