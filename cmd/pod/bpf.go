// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
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
		group("ct", "Connection tracking", bpfCT(a), bpfCTFlush(a)),
		group("endpoint", "Local endpoints", bpfList(a, "endpoint", "IP ADDRESS\tLOCAL ENDPOINT INFO")),
		group("frag", "Fragment tracking", bpfList(a, "frag", "FRAGMENT\tPORTS")),
		group("ipcache", "Address to identity", bpfList(a, "ipcache", "IP PREFIX/ADDRESS\tIDENTITY"), bpfIPCacheGet(a)),
		group("lb", "Load balancing", bpfLB(a), group("maglev", "Tables of consistent hashing", bpfMaglevList(a), bpfMaglevGet(a))),
		group("metrics", "Packet counters", bpfMetrics(a)),
		group("nat", "Address translation", bpfNAT(a)),
		group("tunnel", "Tunnel endpoints", bpfList(a, "tunnel", "TUNNEL\tVALUE")),
	)
}

// bpfList prints a view as two columns; its JSON form maps each key to its values.
func bpfList(a *app, name, head string) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List all entries", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return printView(a, c, name, head, out)
		},
	}
	out.bind(c)
	return c
}

func printView(a *app, c *cobra.Command, name, head string, out output) error {
	m, err := view(c, a.client(), name)
	if err != nil {
		return err
	}
	return printEntries(a, m, head, out)
}

// printEntries prints keys and values; a key that comes several times in a row is printed once.
func printEntries(a *app, m *api.BPFMap, head string, out output) error {
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
	var frontends, backends, revnat, sources, affinity bool
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
			case sources:
				name, head = "lb-sources", "SOURCE RANGE (REVNAT_ID)\tSERVICE ADDRESS"
			case affinity:
				name, head = "lb-affinity", "CLIENT (REVNAT_ID)\tBACKEND ADDRESS (BACKEND_ID)"
			}
			return printView(a, c, name, head, out)
		},
	}
	out.bind(c)
	c.Flags().BoolVar(&frontends, "frontends", false, "frontends only")
	c.Flags().BoolVar(&backends, "backends", false, "backends only")
	c.Flags().BoolVar(&revnat, "revnat", false, "reverse translation by service number")
	c.Flags().BoolVar(&sources, "source-ranges", false, "who may use the frontends that not everybody may")
	c.Flags().BoolVar(&affinity, "affinity", false, "which client keeps which backend")
	c.MarkFlagsMutuallyExclusive("frontends", "backends", "revnat", "source-ranges", "affinity")
	return c
}

func bpfMaglevList(a *app) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the tables and how much of each a backend has", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return printView(a, c, "lb-maglev", "SVC ID\tLOOKUP TABLE", out)
		},
	}
	out.bind(c)
	return c
}

func bpfMaglevGet(a *app) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "get ID", Short: "Show the whole table of a service number: backend numbers", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if _, err := strconv.ParseUint(args[0], 10, 32); err != nil {
				return fmt.Errorf("invalid service id %q: want a number of `service list`", args[0])
			}
			m, err := view(c, a.client(), "lb-maglev:"+args[0])
			if err != nil {
				return err
			}
			if len(m.Cache) == 0 {
				return fmt.Errorf("service %s has no Maglev table", args[0])
			}
			return printEntries(a, m, "SVC ID\tLOOKUP TABLE", out)
		},
	}
	out.bind(c)
	return c
}

func bpfCT(a *app) *cobra.Command {
	var out output
	var diff bool
	c := &cobra.Command{
		Use: "list global", Aliases: []string{"ls"}, Short: "List tracked connections", Args: cobra.RangeArgs(0, 2),
		Long: `List tracked connections, one entry a line. SVC is a connection to a Service as the client made it, OUT began on
this node, IN elsewhere. One entry serves both directions; packets are not counted, bytes in units of 1024.
"expires" is in seconds of the clock that begins when the machine starts.`,
		RunE: func(c *cobra.Command, args []string) error {
			if err := onlyGlobal(args); err != nil {
				return err
			}
			m, err := view(c, a.client(), "ct")
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, keysAndFields(m)); done {
				return err
			}
			for _, e := range m.Cache {
				v := e.Value
				if diff {
					expires, rest, _ := strings.Cut(v, " ")
					v = fmt.Sprintf("%s (remaining: %s sec(s)) %s", expires, e.Fields["remaining"], rest)
				}
				fmt.Fprintln(a.w.Out, e.Key+" "+v)
			}
			return nil
		},
	}
	out.bind(c)
	c.Flags().BoolVarP(&diff, "time-diff", "d", false, "also how much longer each entry lives")
	return c
}

func onlyGlobal(args []string) error {
	if len(args) > 0 && args[0] != "global" || len(args) > 1 {
		return fmt.Errorf("there is one connection table for all endpoints: leave %q out, or say `global`", strings.Join(args, " "))
	}
	return nil
}

func keysAndFields(m *api.BPFMap) []map[string]any {
	rows := make([]map[string]any, 0, len(m.Cache))
	for _, e := range m.Cache {
		rows = append(rows, map[string]any{"Key": e.Key, "Value": e.Fields})
	}
	return rows
}

func bpfCTFlush(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "flush [global]", Short: "Forget all connections; those that are translated break", Args: cobra.RangeArgs(0, 2),
		RunE: func(c *cobra.Command, args []string) error {
			if err := onlyGlobal(args); err != nil {
				return err
			}
			n, err := a.client().FlushFlows(c.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.w.Out, "Flushed %d entries\n", n)
			return err
		},
	}
}

func bpfNAT(a *app) *cobra.Command {
	var out output
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List translations", Args: cobra.NoArgs,
		Long: `List translations, one entry a line: what happens to packets of the client (OUT) and to replies (IN).
They are part of the connection tables, see also bpf ct list.`,
		RunE: func(c *cobra.Command, _ []string) error {
			m, err := view(c, a.client(), "nat")
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, keysAndFields(m)); done {
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
