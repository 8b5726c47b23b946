// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/clientcmd"
)

// Kinds of failure that end a command before it can do its work. Test with errors.Is.
var (
	ErrConfig      = errors.New("invalid kubeconfig")
	ErrUnreachable = errors.New("cluster unreachable")
	ErrForbidden   = errors.New("not allowed by the cluster")
)

// configError words a failure to read the kubeconfig.
func (f *Flags) configError(err error) error {
	switch {
	case errors.Is(err, ErrConfig):
		return err
	case clientcmd.IsEmptyConfig(err):
		return fmt.Errorf("%w: no cluster is configured (looked in %s); create one with `lash cluster create` or give --kubeconfig",
			ErrConfig, f.where())
	}
	return fmt.Errorf("%w: %w (read from %s)", ErrConfig, err, f.where())
}

// Explain turns an error of a request into one that says what is wrong and what to do, and that
// matches ErrUnreachable or ErrForbidden. Other errors come back unchanged.
func (c *Client) Explain(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrConfig), errors.Is(err, ErrUnreachable), errors.Is(err, ErrForbidden):
		return err
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("%w: the API server %s does not accept the credentials of context %q: %w; log in again, or try another user (--context, --as)",
			ErrForbidden, c.Server, c.Context, err)
	case apierrors.IsForbidden(err):
		return fmt.Errorf("%w: %w; try another user (--context, --as) or ask for the permission", ErrForbidden, err)
	case c.isUnreachable(err):
		return fmt.Errorf("%w: the API server %s of context %q does not answer: %w; check with `kubectl --context %s version`",
			ErrUnreachable, c.Server, c.Context, rootCause(err), c.Context)
	}
	return err
}

// isUnreachable says whether a request to the API server failed on its way and not at its
// destination.
func (c *Client) isUnreachable(err error) bool {
	var u *url.Error
	if !errors.As(err, &u) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	return strings.HasPrefix(u.URL, c.Server) || (c.Config != nil && strings.HasPrefix(u.URL, c.Config.Host))
}

// rootCause drops the wrapping that repeats the URL.
func rootCause(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

func namesOf[V any](m map[string]V) string {
	if len(m) == 0 {
		return "none"
	}
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
