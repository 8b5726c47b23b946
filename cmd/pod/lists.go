// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
)

func newIdentity(a *app) *cobra.Command {
	var out output
	var refs bool
	list := &cobra.Command{
		Use: "list [LABELS]", Aliases: []string{"ls"}, Short: "List identities",
		RunE: func(c *cobra.Command, labels []string) error {
			ids, err := a.client().Identities(c.Context(), labels...)
			if err != nil {
				return err
			}
			if refs {
				ids = slices.DeleteFunc(ids, func(i api.Identity) bool { return i.RefCount == 0 })
			} else {
				for i := range ids {
					ids[i].RefCount = 0
				}
			}
			if done, err := out.print(a.w.Out, ids); done {
				return err
			}
			return writeIdentities(a.w.Out, ids, refs)
		},
	}
	out.bind(list)
	list.Flags().BoolVar(&refs, "endpoints", false, "only identities of endpoints of this node, with their number")

	var getOut output
	var label []string
	get := &cobra.Command{
		Use: "get ID", Short: "Show one identity", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			var ids []api.Identity
			switch {
			case len(args) == 1 && len(label) == 0:
				id, err := a.client().Identity(c.Context(), args[0])
				if err != nil {
					return err
				}
				ids = append(ids, *id)
			case len(args) == 0 && len(label) > 0:
				var err error
				if ids, err = a.client().Identities(c.Context(), label...); err != nil {
					return err
				}
				if len(ids) == 0 {
					return fmt.Errorf("no identity has the labels %s", strings.Join(label, " "))
				}
			default:
				return errors.New("give either an identity or --label")
			}
			for i := range ids {
				ids[i].RefCount = 0 // of this node only: no part of an identity
			}
			if done, err := getOut.print(a.w.Out, ids); done {
				return err
			}
			return writeIdentities(a.w.Out, ids, false)
		},
	}
	getOut.bind(get)
	get.Flags().StringSliceVar(&label, "label", nil, "labels that the identity has")
	return group("identity", "Show security identities", list, get)
}

// writeIdentities prints one label a line; the number stands on the first of them.
func writeIdentities(w io.Writer, ids []api.Identity, refs bool) error {
	t := table(w, 5)
	if refs {
		fmt.Fprintf(t, "ID\tLABELS\tREFCOUNT\n")
	} else {
		fmt.Fprintf(t, "ID\tLABELS\n")
	}
	for _, id := range ids {
		labels := id.Labels
		if len(labels) == 0 {
			labels = []string{""}
		}
		for i, l := range labels {
			switch {
			case i > 0:
				fmt.Fprintf(t, "\t%s\n", l)
			case refs:
				fmt.Fprintf(t, "%d\t%s\t%d\n", id.ID, l, id.RefCount)
			default:
				fmt.Fprintf(t, "%d\t%s\n", id.ID, l)
			}
		}
	}
	return t.Flush()
}

func newEndpoint(a *app) *cobra.Command {
	var out output
	var noHeaders bool
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the endpoints of this node", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			eps, err := a.client().Endpoints(c.Context())
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, eps); done {
				return err
			}
			return writeEndpoints(a.w.Out, eps, !noHeaders)
		},
	}
	out.bind(list)
	list.Flags().BoolVar(&noHeaders, "no-headers", false, "leave the column names out")

	var getOut output
	get := &cobra.Command{
		Use: "get ID", Short: "Show one endpoint", Args: cobra.ExactArgs(1),
		Long: "Show one endpoint, by number or by a prefixed name: cilium-local:, container-id:, cni-attachment-id:, cep-name:, pod-name:, ipv4:, ipv6:.",
		RunE: func(c *cobra.Command, args []string) error {
			ep, err := a.client().Endpoint(c.Context(), args[0])
			if err != nil {
				return err
			}
			if getOut == "" {
				getOut = "json"
			}
			_, err = getOut.print(a.w.Out, []api.Endpoint{*ep})
			return err
		},
	}
	getOut.bind(get)
	return group("endpoint", "Show endpoints", list, get)
}

func writeEndpoints(w io.Writer, eps []api.Endpoint, headers bool) error {
	t := table(w, 2)
	if headers {
		fmt.Fprintf(t, "ENDPOINT\tPOLICY (ingress)\tPOLICY (egress)\tIDENTITY\tLABELS (source:key[=value])\tIPv6\tIPv4\tSTATUS\t\n")
		fmt.Fprintf(t, "\tENFORCEMENT\tENFORCEMENT\t\t\t\t\t\t\n")
	}
	for _, ep := range eps {
		st := ep.Status
		if st == nil {
			st = &api.EndpointStatus{State: "unknown"}
		}
		id, labels := "<no label id>", []string{"no labels"}
		if st.Identity != nil {
			id = strconv.FormatInt(st.Identity.ID, 10)
			if len(st.Identity.Labels) > 0 {
				labels = st.Identity.Labels
			}
		}
		var v4, v6 string
		if st.Networking != nil && len(st.Networking.Addressing) > 0 {
			v4, v6 = st.Networking.Addressing[0].IPv4, st.Networking.Addressing[0].IPv6
		}
		in, eg := enforcement(st.Policy)
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t\n", ep.ID, in, eg, id, labels[0], v6, v4, st.State)
		for _, l := range labels[1:] {
			fmt.Fprintf(t, "\t\t\t\t%s\t\t\t\t\n", l)
		}
	}
	return t.Flush()
}

func enforcement(p *api.EndpointPolicy) (ingress, egress string) {
	if p == nil || p.Realized == nil {
		return "Unknown", "Unknown"
	}
	switch p.Realized.PolicyEnabled {
	case "none":
		return "Disabled", "Disabled"
	case "both":
		return "Enabled", "Enabled"
	case "ingress":
		return "Enabled", "Disabled"
	case "egress":
		return "Disabled", "Enabled"
	}
	return "Unknown", "Unknown"
}

func newIP(a *app) *cobra.Command {
	var out output
	var numeric, verbose bool
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List addresses and who they belong to", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl := a.client()
			ips, err := cl.IPs(c.Context())
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, ips); done {
				return err
			}
			labels := map[int64][]string{}
			if !numeric {
				ids, err := cl.Identities(c.Context())
				if err != nil {
					return err
				}
				for _, id := range ids {
					labels[id.ID] = id.Labels
				}
			}
			return writeIPs(a.w.Out, ips, labels, verbose)
		},
	}
	out.bind(list)
	list.Flags().BoolVarP(&numeric, "numeric", "n", false, "numbers instead of labels")
	list.Flags().BoolVarP(&verbose, "verbose", "v", false, "the node and the key of each address, too")
	return group("ip", "Show address information", list)
}

func writeIPs(w io.Writer, ips []api.IPEntry, labels map[int64][]string, verbose bool) error {
	t := table(w, 2)
	head := "IP\tIDENTITY\tSOURCE"
	if verbose {
		head += "\tHOST\tENCRYPT_KEY"
	}
	fmt.Fprintln(t, head)
	for _, ip := range ips {
		names := labels[ip.Identity]
		if len(names) == 0 {
			names = []string{strconv.FormatInt(ip.Identity, 10)}
		}
		source := ""
		if ip.Metadata != nil {
			source = ip.Metadata.Source
		}
		row := ip.CIDR + "\t" + names[0] + "\t" + source
		if verbose {
			row += fmt.Sprintf("\t%s\t%d", ip.HostIP, ip.EncryptKey)
		}
		fmt.Fprintln(t, row)
		// As many cells as the head has, or the columns behind would not line up.
		rest := strings.Repeat("\t", strings.Count(head, "\t")-1)
		for _, n := range names[1:] {
			fmt.Fprintf(t, "\t%s%s\n", n, rest)
		}
	}
	return t.Flush()
}

func newService(a *app) *cobra.Command {
	var out output
	var namespace, name string
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the frontends of Services and their backends", Args: cobra.NoArgs,
		Long: `List the frontends of Services that are in the kernel of this node, with the backends that callers get.

All frontends of a Service port and family share a number. Where callers outside the cluster and inside
get other backends, the frontend is listed for both; "/i" is for those inside.`,
		RunE: func(c *cobra.Command, _ []string) error {
			svcs, err := a.client().Services(c.Context(), namespace, name)
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, svcs); done {
				return err
			}
			return writeServices(a.w.Out, svcs)
		},
	}
	out.bind(list)
	list.Flags().StringVarP(&namespace, "namespace", "n", "", "only Services of this namespace")
	list.Flags().StringVar(&name, "name", "", "only Services of this name")

	var getOut output
	get := &cobra.Command{
		Use: "get ID", Short: "Show the frontends of a Service port by its number", Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil || id < 1 {
				return fmt.Errorf("invalid service id %q: want a number of `service list`", args[0])
			}
			svcs, err := a.client().Services(c.Context(), "", "")
			if err != nil {
				return err
			}
			svcs = slices.DeleteFunc(svcs, func(s api.Service) bool { return s.Spec.ID != id })
			if len(svcs) == 0 {
				return fmt.Errorf("no service %d", id)
			}
			if done, err := getOut.print(a.w.Out, svcs); done {
				return err
			}
			return writeServices(a.w.Out, svcs)
		},
	}
	getOut.bind(get)
	return group("service", "Show Services", list, get)
}

func writeServices(w io.Writer, svcs []api.Service) error {
	t := table(w, 5)
	fmt.Fprintln(t, "ID\tFrontend\tService Type\tBackend\t")
	for _, s := range svcs {
		sp := s.Spec
		rows := []string{""}
		for i, b := range sp.Backends {
			state := b.State
			if state == "" {
				state = "active"
			}
			row := fmt.Sprintf("%d => %s/%s (%s)", i+1, hostPort(b.IP, b.Port), firstOf(b.Protocol, sp.Frontend.Protocol), state)
			if i == 0 {
				rows[0] = row
				continue
			}
			rows = append(rows, row)
		}
		f := sp.Frontend
		front := hostPort(f.IP, f.Port) + "/" + f.Protocol
		if f.Scope == "internal" {
			front += "/i"
		}
		fmt.Fprintf(t, "%d\t%s\t%s\t%s\t\n", sp.ID, front, sp.Flags.Type, rows[0])
		for _, r := range rows[1:] {
			fmt.Fprintf(t, "\t\t\t%s\t\n", r)
		}
	}
	return t.Flush()
}

func newNode(a *app) *cobra.Command {
	var out output
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the nodes of the cluster", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cl, err := a.client().Nodes(c.Context())
			if err != nil {
				return err
			}
			if done, err := out.print(a.w.Out, cl.Nodes); done {
				return err
			}
			t := table(a.w.Out, 2)
			fmt.Fprintln(t, "Name\tIPv4 Address\tEndpoint CIDR\tIPv6 Address\tEndpoint CIDR\tSource\t")
			for _, n := range cl.Nodes {
				v4, v6 := &api.NodeAddress{}, &api.NodeAddress{}
				if n.PrimaryAddress != nil && n.PrimaryAddress.IPv4 != nil {
					v4 = n.PrimaryAddress.IPv4
				}
				if n.PrimaryAddress != nil && n.PrimaryAddress.IPv6 != nil {
					v6 = n.PrimaryAddress.IPv6
				}
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t\n", n.Name, v4.IP, v4.AllocRange, v6.IP, v6.AllocRange, n.Source)
			}
			return t.Flush()
		},
	}
	out.bind(list)
	return group("node", "Show nodes", list)
}

func hostPort(ip string, port uint16) string {
	return net.JoinHostPort(ip, strconv.Itoa(int(port)))
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
