// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	nodeimage "lash.internal/lash/install/image"
)

func newImage(w World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Handle the container image that runs on the nodes",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newImageSave(w))
	return cmd
}

func newImageSave(w World) *cobra.Command {
	var o nodeimage.Options
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Write the node image as a docker-archive; - is the standard output",
		Long: `Write the node image as a docker-archive, which containerd (ctr images import), Docker (docker load),
podman and skopeo read. Works offline: the programs of the image are inside this one. The same
version gives the same bytes.`,
		Example: `  lash image save lash.tar && lash cluster load-image lash.tar`,
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "-" {
				return nodeimage.Save(cmd.Context(), w.Out, o)
			}
			f, err := os.CreateTemp(filepath.Dir(args[0]), ".lash-image-*")
			if err != nil {
				return fmt.Errorf("image: %w", err)
			}
			defer os.Remove(f.Name())
			err = errors.Join(nodeimage.Save(cmd.Context(), f, o), f.Chmod(0o644), f.Close())
			if err == nil {
				err = os.Rename(f.Name(), args[0])
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(w.Err, "Saved %s to %s\n", o.Ref(), args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&o.Repository, "repository", nodeimage.Repository, "repository part of the image's name")
	return cmd
}
