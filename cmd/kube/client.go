// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"strings"
	"time"

	apiext "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/apimachinery/pkg/version"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Client is one cluster, as the flags and the kubeconfig name it.
type Client struct {
	Clientset kubernetes.Interface
	Dynamic   dynamic.Interface
	APIExt    apiext.Interface
	Config    *rest.Config // nil with fake clients
	Getter    genericclioptions.RESTClientGetter

	Context   string // name of the kubeconfig context
	Cluster   string // name of the kubeconfig cluster entry
	Server    string // URL of the API server as the kubeconfig has it
	Namespace string // the network's namespace
	User      string // the namespace of the user's own objects, as the kubeconfig context has it
	Release   string // the Helm release's name
}

// Client builds the clients. It reads the kubeconfig and does not contact the cluster; use Check
// for that.
func (f *Flags) Client() (*Client, error) {
	context, cluster, server, user, err := f.contextNames()
	if err != nil {
		return nil, f.configError(err)
	}
	cfg, err := f.config.ToRESTConfig()
	if err != nil {
		return nil, f.configError(err)
	}
	if server == "" && *f.config.APIServer == "" && strings.HasSuffix(cfg.Host, "localhost:8080") {
		return nil, f.configError(clientcmd.ErrEmptyConfig) // the default that stands for no configuration
	}
	cfg.QPS, cfg.Burst = 50, 100
	cfg.UserAgent = "lash"
	c := &Client{
		Config: cfg, Getter: f.config,
		Context: context, Cluster: cluster, Server: server,
		Namespace: f.Namespace(), User: user, Release: f.release,
	}
	if c.Server == "" {
		c.Server = cfg.Host
	}
	if c.Clientset, err = kubernetes.NewForConfig(cfg); err != nil {
		return nil, f.configError(err)
	}
	if c.Dynamic, err = dynamic.NewForConfig(cfg); err != nil {
		return nil, f.configError(err)
	}
	if c.APIExt, err = apiext.NewForConfig(cfg); err != nil {
		return nil, f.configError(err)
	}
	return c, nil
}

// checkLimit is how long Check waits for an answer.
const checkLimit = 10 * time.Second

// Check asks the API server for its version: the cheapest proof that it can be reached and that
// it accepts us.
func (c *Client) Check(ctx context.Context) (*version.Info, error) {
	type answer struct {
		v   *version.Info
		err error
	}
	ch := make(chan answer, 1)
	go func() { // discovery takes no context; the request ends with its own time-out
		v, err := c.Clientset.Discovery().ServerVersion()
		ch <- answer{v, err}
	}()
	select {
	case a := <-ch:
		if a.err != nil {
			return nil, c.Explain(fmt.Errorf("asking for the server's version: %w", a.err))
		}
		return a.v, nil
	case <-time.After(checkLimit):
		return nil, fmt.Errorf("%w: the API server %s of context %q did not answer within %s; check with `kubectl --context %s version`",
			ErrUnreachable, c.Server, c.Context, checkLimit, c.Context)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
