// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/cmd/kube"
	cliterm "lash.internal/lash/cmd/term"
	"lash.internal/lash/install"
)

func newUninstall(w World) *cobra.Command {
	var (
		wait    bool
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the network from a cluster",
		Long: `Uninstall removes the Helm release, waits until the agents are gone and cleans every node: programs,
maps, devices, routes and files. The custom resource definitions stay. It acts only on a release of
Lash's own chart.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return runUninstall(cmd.Context(), w, wait, timeout) },
	}
	cmd.Flags().BoolVar(&wait, "wait", true, "Wait until the agents are gone and clean the nodes; without it only the release is removed")
	cmd.Flags().DurationVar(&timeout, "timeout", 5*time.Minute, "Limit of the whole command")
	return cmd
}

func runUninstall(ctx context.Context, w World, wait bool, timeout time.Duration) error {
	progress := cliterm.New(w.Err, w.Getenv)
	client, err := w.Kube.Client()
	if err != nil {
		return err
	}
	if _, err := client.Check(ctx); err != nil {
		return err
	}
	ctx, cancel := kube.WithTimeout(ctx, timeout)
	defer cancel()
	r := &install.Removal{Cluster: clusterOf(client), Clean: wait, Timeout: timeout, Say: progress.Println, WaitPods: client.WaitPods}
	if err := r.Run(ctx); err != nil {
		return err
	}
	progress.Println("ℹ️  Pods that are still running have no network any more: restart them when another one is installed")
	if !wait {
		progress.Println("ℹ️  The nodes were not cleaned: programs, devices and files of Lash are still there")
	}
	progress.Println("ℹ️  The kinds of cilium.io were kept. To remove them and all their objects:")
	progress.Println("   kubectl delete crd ciliumnodes.cilium.io ciliumendpoints.cilium.io ciliumidentities.cilium.io")
	return nil
}
