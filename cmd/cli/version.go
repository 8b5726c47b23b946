// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/install"
)

// versionInfo is what `lash version` knows; the JSON keys are stable.
type versionInfo struct {
	Client  clientVersion   `json:"client"`
	Running *runningVersion `json:"running,omitempty"`
}

type clientVersion struct {
	Version       string `json:"version"`
	Compatibility string `json:"ciliumVersion"`
	Go            string `json:"goVersion"`
	Platform      string `json:"platform"`
}

type runningVersion struct {
	Chart         string `json:"chart"`
	Version       string `json:"version"`
	Compatibility string `json:"ciliumVersion"`
}

func newVersion(w World) *cobra.Command {
	var (
		client bool
		output string
	)
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Versions of this program and of what is installed",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "" && output != "json" && output != "yaml" {
				return usageError("unknown output %q: use json or yaml", output)
			}
			info := versionInfo{Client: clientVersion{
				Version: api.Version, Compatibility: api.CiliumVersion,
				Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
			}}
			var err error
			if !client {
				info.Running, err = running(cmd.Context(), w)
			}
			if perr := printVersion(w, info, client, output); perr != nil {
				return perr
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&client, "client", false, "Do not contact the cluster")
	cmd.Flags().StringVarP(&output, "output", "o", "", "Format of the output: json or yaml")
	return cmd
}

// running reads the installed release; nil when there is none.
func running(ctx context.Context, w World) (*runningVersion, error) {
	c, err := w.Kube.Client()
	if err != nil {
		return nil, err
	}
	if _, err := c.Check(ctx); err != nil {
		return nil, err
	}
	rel, err := install.Existing(clusterOf(c))
	if err != nil || rel == nil {
		return nil, err
	}
	m := rel.Chart.Metadata
	return &runningVersion{Chart: m.Name, Version: m.Version, Compatibility: m.AppVersion}, nil
}

func printVersion(w World, info versionInfo, client bool, output string) error {
	var (
		text []byte
		err  error
	)
	switch output {
	case "json":
		text, err = json.MarshalIndent(info, "", "  ")
		text = append(text, '\n')
	case "yaml":
		text, err = yaml.Marshal(info)
	default:
		c := info.Client
		s := fmt.Sprintf("lash: v%s compiled with %s on %s\ncilium image (default): v%s\n", c.Version, c.Go, c.Platform, c.Compatibility)
		switch r := info.Running; {
		case client:
		case r == nil:
			s += "cilium image (running): unknown. Not installed, or not found\n"
		default:
			s += fmt.Sprintf("cilium image (running): %s (%s %s)\n", r.Compatibility, r.Chart, r.Version)
		}
		text = []byte(s)
	}
	if err != nil {
		return err
	}
	_, err = w.Out.Write(text)
	return err
}
