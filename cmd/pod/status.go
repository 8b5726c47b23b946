// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/agent/api/client"
)

// details says which parts of the status text are wanted.
type details struct {
	addresses, controllers, nodes, kpr, maps, attachments bool
}

func newStatus(a *app) *cobra.Command {
	var out output
	var d details
	var verbose, brief, needK8s, endpoints, redirects, clusters, health bool
	timeout := 30 * time.Second
	c := &cobra.Command{
		Use: "status", Short: "Show the state of the agent", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if health {
				return errors.New("--all-health: nodes do not probe each other yet; use `lash connectivity test`")
			}
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			st, err := a.client().Status(ctx)
			if err != nil {
				return statusUnreachable(a, err, brief)
			}
			failure := failureOf(st, needK8s)
			var shown any = st
			if endpoints {
				eps, err := a.client().Endpoints(ctx)
				if err != nil {
					return err
				}
				shown = api.NodeReport{StatusResponse: *st, Endpoints: eps}
			}
			if done, err := out.print(a.w.Out, shown); done {
				return err
			}
			if endpoints {
				return errors.New("--endpoints needs -o")
			}
			if brief {
				if failure != "" {
					fmt.Fprintln(a.w.Out, "error in "+failure)
					return quiet{errors.New(failure)}
				}
				_, err := fmt.Fprintln(a.w.Out, "OK")
				return err
			}
			if verbose {
				d = details{addresses: true, controllers: true, nodes: true, kpr: true, maps: true, attachments: true}
			}
			if err := writeStatus(a.w.Out, st, d, time.Now()); err != nil {
				return err
			}
			if failure != "" {
				return quiet{errors.New(failure)}
			}
			return nil
		},
	}
	out.bind(c)
	f := c.Flags()
	f.BoolVar(&verbose, "verbose", false, "everything that is below, and more")
	f.BoolVar(&brief, "brief", false, "one line: OK, or what is wrong")
	f.BoolVar(&d.addresses, "all-addresses", false, "all allocated addresses")
	f.BoolVar(&d.controllers, "all-controllers", false, "all controllers, not only failing ones")
	f.BoolVar(&d.nodes, "all-nodes", false, "all nodes")
	// Lists of what there is none of yet: their rows say so in any case.
	f.BoolVar(&redirects, "all-redirects", false, "all redirects to a proxy")
	f.BoolVar(&clusters, "all-clusters", false, "all connected clusters")
	f.BoolVar(&health, "all-health", false, "")
	_ = f.MarkHidden("all-health") // the flag exists, so this cannot fail
	f.BoolVar(&needK8s, "require-k8s-connectivity", true, "without a connection to the API server the agent is not healthy")
	f.BoolVar(&endpoints, "endpoints", false, "with -o: the endpoints of the node, too")
	f.DurationVar(&timeout, "timeout", timeout, "how long to wait for the agent")
	return c
}

func statusUnreachable(a *app, err error, brief bool) error {
	if !brief {
		return fmt.Errorf("cannot get agent status: %w", err)
	}
	if errors.Is(err, client.ErrUnreachable) {
		fmt.Fprintln(a.w.Out, "cilium: daemon unreachable")
	} else {
		fmt.Fprintln(a.w.Out, "error in cilium: "+err.Error())
	}
	return quiet{err}
}

// failureOf names the first component that has failed and what it says; empty when the agent is
// healthy.
func failureOf(st *api.StatusResponse, needK8s bool) string {
	type part struct {
		name string
		s    *api.Status
	}
	parts := []part{{"kvstore", st.Kvstore}, {"container runtime", st.ContainerRuntime}}
	if k := st.Kubernetes; k != nil && needK8s {
		parts = append(parts, part{"kubernetes", &api.Status{State: k.State, Msg: k.Msg}})
	}
	parts = append(parts, part{"cni", st.CNIFile}, part{"cilium", st.Cilium}, part{"datapath probe", st.DatapathProbe})
	for _, p := range parts {
		if p.s != nil && p.s.State == api.StateFailure {
			return p.name + ": " + p.s.Msg
		}
	}
	return ""
}
