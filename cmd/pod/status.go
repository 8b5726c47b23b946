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
	addresses, controllers, nodes, redirects, clusters, health, kpr, maps bool
}

func newStatus(a *app) *cobra.Command {
	var out output
	var d details
	var verbose, brief, ready bool
	timeout := 30 * time.Second
	c := &cobra.Command{
		Use: "status", Short: "Show the state of the agent", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(c.Context(), timeout)
			defer cancel()
			st, err := a.client().Status(ctx)
			if err != nil {
				return statusUnreachable(a, err, brief)
			}
			failure := Failure(st)
			if ready && failure == "" && st.Cilium == nil {
				failure = "no status of the agent"
			}
			if done, err := out.print(a.w.Out, st); done {
				return err
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
				d = details{true, true, true, true, true, true, true, true}
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
	f.BoolVar(&d.redirects, "all-redirects", false, "all proxy redirects")
	f.BoolVar(&d.clusters, "all-clusters", false, "all connected clusters")
	f.BoolVar(&d.health, "all-health", false, "the health of all nodes")
	f.BoolVar(&ready, "require-k8s-connectivity", true, "without a connection to the API server the agent is not healthy")
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

// Failure names the first component that has failed and what it says; empty when the agent is
// healthy.
func Failure(st *api.StatusResponse) string {
	check := func(name string, s *api.Status) string {
		if s != nil && s.State == api.StateFailure {
			return name + ": " + s.Msg
		}
		return ""
	}
	k8s := (*api.Status)(nil)
	if st.Kubernetes != nil {
		k8s = &api.Status{State: st.Kubernetes.State, Msg: st.Kubernetes.Msg}
	}
	for _, f := range []string{
		check("kvstore", st.Kvstore),
		check("container runtime", st.ContainerRuntime),
		check("kubernetes", k8s),
		check("cni", st.CNIFile),
		check("cilium", st.Cilium),
	} {
		if f != "" {
			return f
		}
	}
	return ""
}
