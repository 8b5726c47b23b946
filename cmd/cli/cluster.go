// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"lash.internal/lash/connectivity/cluster"
)

func newCluster(w World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "Make a real Kubernetes cluster on this machine",
		Long: `Make and remove Kubernetes clusters on this Linux machine, for development and tests. The nodes are
namespaces with a kubelet and a containerd each; no container engine is needed, but root is.
Programs of other projects are taken from --bin-dir or PATH when they have the right version, else
built once with Go into the user's cache.`,
		Args: cobra.NoArgs,
	}
	cmd.AddCommand(newClusterCreate(w), newClusterDelete(w), newClusterList(w), newClusterLoadImage(w),
		newClusterExec(w), newClusterKubeconfig(w))
	return cmd
}

// clusterName is the optional only argument.
func clusterName(args []string) string {
	if len(args) == 0 {
		return cluster.DefaultName
	}
	return args[0]
}

// stepPrinter prints one line a step, with the time since the start.
func stepPrinter(out io.Writer) func(string) {
	start := time.Now()
	return func(step string) {
		fmt.Fprintf(out, "[%5.1fs] %s\n", time.Since(start).Seconds(), step)
	}
}

// clusterError gives the library's errors their exit codes.
func clusterError(err error) error {
	if errors.Is(err, cluster.ErrBadOption) {
		return &ExitError{Code: ExitUsage, Err: err}
	}
	return err
}

func newClusterCreate(w World) *cobra.Command {
	var o cluster.Options
	cmd := &cobra.Command{
		Use:   "create [NAME]",
		Short: "Create a cluster and make it the current context",
		Example: `  lash cluster create
  lash cluster create bench --workers 1 --kube-proxy nftables --cni ptp
  lash cluster create six --ip-family ipv6`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Name = clusterName(args)
			o.Progress = stepPrinter(w.Err)
			c, err := cluster.Create(cmd.Context(), o)
			if err != nil {
				return clusterError(err)
			}
			if err := placeKubectl(w, c.Kubectl); err != nil {
				fmt.Fprintln(w.Err, "Warning: "+err.Error())
			}
			fmt.Fprintf(w.Err, "Cluster %s runs Kubernetes %s on %d nodes; context %s\n",
				c.Name, c.Version, len(c.Nodes)-2, c.FullName())
			return nil
		},
	}
	f := cmd.Flags()
	f.IntVar(&o.Workers, "workers", 2, "nodes beside the control plane")
	f.StringVar(&o.KubeProxy, "kube-proxy", "none", "none, iptables or nftables")
	f.StringVar(&o.CNI, "cni", "none", "none (nodes stay NotReady until one is installed) or ptp (reference plugins and static routes)")
	f.StringVar(&o.IPFamily, "ip-family", "ipv4", "ipv4, ipv6 or dual")
	f.StringSliceVar(&o.PodCIDRs, "pod-cidr", nil, "pod CIDR, one a family (default 10.244.0.0/16, fd00:10:244::/56)")
	f.StringSliceVar(&o.ServiceCIDRs, "service-cidr", nil, "service CIDR, one a family (default 10.96.0.0/12, fd00:10:96::/112)")
	f.StringVar(&o.BinDir, "bin-dir", "", "folder with third-party programs to use when they have the right version")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "file to add the context to (default as kubectl has it)")
	f.BoolVar(&o.Keep, "keep-on-failure", false, "leave a cluster that failed to come up for a look at it")
	return cmd
}

// placeKubectl leaves kubectl beside this program when it lives in a folder called bin.
func placeKubectl(w World, source string) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own path: %w", err)
	}
	dir := filepath.Dir(self)
	if filepath.Base(dir) != "bin" || strings.HasPrefix(dir, "/usr/") || dir == "/bin" {
		return nil // a system folder is not ours to fill
	}
	target := filepath.Join(dir, "kubectl")
	data, err := os.ReadFile(source)
	if err != nil {
		return fmt.Errorf("kubectl: %w", err)
	}
	if have, err := os.ReadFile(target); err == nil && bytes.Equal(have, data) {
		return nil
	}
	if err := os.WriteFile(target+".part", data, 0o755); err != nil {
		return fmt.Errorf("kubectl: %w", err)
	}
	if err := os.Rename(target+".part", target); err != nil {
		return fmt.Errorf("kubectl: %w", err)
	}
	fmt.Fprintln(w.Err, "kubectl of the same version is at "+target)
	return nil
}

func newClusterDelete(w World) *cobra.Command {
	return &cobra.Command{
		Use:               "delete [NAME]",
		Short:             "Delete a cluster, whatever its state, and all that belongs to it",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeClusters,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := clusterName(args)
			err := cluster.Delete(cmd.Context(), "", name)
			if errors.Is(err, cluster.ErrNotFound) {
				fmt.Fprintf(w.Err, "There is no cluster %s\n", name)
				return nil
			}
			if err != nil {
				return clusterError(err)
			}
			fmt.Fprintf(w.Err, "Deleted cluster %s\n", name)
			return nil
		},
	}
}

func completeClusters(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	clusters, err := cluster.List("")
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, c := range clusters {
		names = append(names, c.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// clusterRow is what list shows of a cluster.
type clusterRow struct {
	Name      string   `json:"name"`
	Context   string   `json:"context"`
	State     string   `json:"state"` // running, degraded, creating, deleting
	Version   string   `json:"version"`
	Nodes     []string `json:"nodes"`
	KubeProxy string   `json:"kubeProxy"`
	CNI       string   `json:"cni"`
	Server    string   `json:"server"`
	Ended     []string `json:"endedProcesses,omitempty"`
}

func clusterRows() ([]clusterRow, error) {
	clusters, err := cluster.List("")
	if err != nil {
		return nil, err
	}
	rows := []clusterRow{}
	for _, c := range clusters {
		r := clusterRow{
			Name: c.Name, Context: c.FullName(), State: string(c.Phase), Version: c.Version,
			KubeProxy: c.KubeProxy, CNI: c.CNI, Server: fmt.Sprintf("https://127.0.0.1:%d", c.Port),
		}
		for _, n := range c.Nodes {
			if n.Role != cluster.RoleFabric && n.Role != cluster.RoleExternal {
				r.Nodes = append(r.Nodes, n.Name)
			}
		}
		for _, p := range c.Dead() {
			r.Ended = append(r.Ended, p.Name+" on "+p.Node)
		}
		if c.Phase == cluster.PhaseReady {
			r.State = "running"
			if len(r.Ended) > 0 {
				r.State = "degraded"
			}
		}
		rows = append(rows, r)
	}
	return rows, nil
}

func newClusterList(w World) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the clusters of this machine",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			rows, err := clusterRows()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				enc := json.NewEncoder(w.Out)
				enc.SetIndent("", "  ")
				return enc.Encode(rows)
			case "table":
				tw := tabwriter.NewWriter(w.Out, 0, 4, 3, ' ', 0)
				fmt.Fprintln(tw, "NAME\tSTATE\tVERSION\tNODES\tKUBE-PROXY\tCNI\tSERVER")
				for _, r := range rows {
					fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", r.Name, r.State, r.Version, len(r.Nodes), r.KubeProxy, r.CNI, r.Server)
				}
				if err := tw.Flush(); err != nil {
					return err
				}
				for _, r := range rows {
					if len(r.Ended) > 0 {
						fmt.Fprintf(w.Err, "%s: ended: %s\n", r.Name, strings.Join(r.Ended, ", "))
					}
				}
				return nil
			}
			return usageError("output %q: use table or json", output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func newClusterLoadImage(w World) *cobra.Command {
	name := cluster.DefaultName
	cmd := &cobra.Command{
		Use:   "load-image FILE",
		Short: "Import an image archive (docker-archive or OCI, any image) into all nodes",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := cluster.LoadImage(cmd.Context(), "", name, args[0]); err != nil {
				return clusterError(err)
			}
			fmt.Fprintf(w.Err, "Loaded %s into the nodes of %s\n", args[0], name)
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", name, "cluster")
	return cmd
}

func newClusterExec(w World) *cobra.Command {
	name := cluster.DefaultName
	cmd := &cobra.Command{
		Use:   "exec NODE -- COMMAND [ARG...]",
		Short: "Run a command on a node, or on the host outside the cluster (node external)",
		Example: `  lash cluster exec worker -- ip route
  lash cluster exec external -- curl http://172.31.0.12:30080`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			command := args[1:]
			if command[0] == "--" {
				command = command[1:]
			}
			if len(command) == 0 {
				return usageError("no command for node %s", args[0])
			}
			code, err := cluster.Exec(cmd.Context(), "", name, args[0], command, w.In, w.Out, w.Err)
			if err != nil {
				return clusterError(err)
			}
			if code != 0 {
				return &ExitError{Code: code, Err: fmt.Errorf("%s ended with %d", command[0], code), Quiet: true}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&name, "name", name, "cluster")
	cmd.Flags().SetInterspersed(false)
	return cmd
}

func newClusterKubeconfig(w World) *cobra.Command {
	return &cobra.Command{
		Use:               "kubeconfig [NAME]",
		Short:             "Print a kubeconfig of the cluster",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: completeClusters,
		RunE: func(_ *cobra.Command, args []string) error {
			data, err := cluster.Kubeconfig("", clusterName(args))
			if err != nil {
				return clusterError(err)
			}
			_, err = w.Out.Write(data)
			return err
		},
	}
}
