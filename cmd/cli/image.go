// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
	"lash.internal/lash/cmd/term"
	nodeimage "lash.internal/lash/install/image"
)

func newImage(w World) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Handle the container image that runs on the nodes",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(newImageSave(w), newImagePush(w))
	return cmd
}

func newImagePush(w World) *cobra.Command {
	o := nodeimage.PushOptions{Keychain: authn.DefaultKeychain}
	cmd := &cobra.Command{
		Use:   "push REGISTRY/NAME[:TAG]",
		Short: "Put the node image into a registry",
		Long: `Put the node image into a registry of yours, for clusters whose nodes pull images. Needs no network but
that registry: the programs of the image are inside this one. Without a tag it gets the version of this program.

Credentials are those of docker login, podman login or helm registry login, credential helpers included.`,
		Example: `  lash image push registry.example.com/net/lash
  lash image push registry.lab:5000/lash:0.1.0 --plain-http
  lash install --set image.repository=registry.example.com/net/lash`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.Ref = args[0]
			return runImagePush(cmd.Context(), w, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.PlainHTTP, "plain-http", false, "use HTTP when the registry has no TLS")
	f.BoolVar(&o.Insecure, "insecure-registry", false, "accept any certificate, and HTTP when the registry has no TLS")
	f.StringVar(&o.CAFile, "ca-file", "", "PEM file with authorities to trust beside those of the system")
	return cmd
}

func runImagePush(ctx context.Context, w World, o nodeimage.PushOptions) error {
	progress := term.New(w.Err, w.Getenv)
	step := progress.Step("Pushing to %s", o.Ref)
	o.Progress = func(done, total int64) {
		if total > 0 {
			step.Detail("%s of %s", sizeText(done), sizeText(total))
		}
	}
	p, err := nodeimage.Push(ctx, o)
	if step.Done(err) != nil {
		if errors.Is(err, nodeimage.ErrReference) {
			return &ExitError{Code: ExitUsage, Err: err}
		}
		return err
	}
	fmt.Fprintln(w.Out, p)
	use := "--set image.repository=" + p.Repository
	if p.Tag != api.Version {
		use += " --set image.tag=" + p.Tag
	}
	progress.Println("ℹ️  %s compressed. To use it: lash install %s", sizeText(p.Size), use)
	return nil
}

// sizeText is a number of bytes for people.
func sizeText(n int64) string {
	if n < 1<<20 {
		return fmt.Sprintf("%d KiB", (n+1023)>>10)
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
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
