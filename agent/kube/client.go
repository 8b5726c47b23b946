// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"

	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"lash.internal/lash/agent/kube/apiserver"
)

// Client is access to the API server: the built-in kinds and, dynamically, those of cilium.io.
type Client struct {
	Kubernetes kubernetes.Interface
	Dynamic    dynamic.Interface
	// Extensions has the definitions of custom resources.
	Extensions apiextensions.Interface
	// Servers are the API servers that requests go to, nil where the client knows one address only.
	Servers *apiserver.Set
}

// ClientOptions says how to reach the API server.
type ClientOptions struct {
	// Kubeconfig is a file; empty means the pod's service account.
	Kubeconfig string
	// UserAgent names the program in the API server's logs.
	UserAgent string
	// Servers are the API servers to choose among, beside KUBERNETES_SERVICE_HOST, as "host:port".
	Servers []string
	// Follow makes the client look for the API servers by itself, since nothing else makes the Service
	// kubernetes work. It is implied by Servers.
	Follow bool
	// NodeName decides which of the Servers is tried first, so that nodes spread over them.
	NodeName string
	// ServersFile keeps the addresses of API servers for the next start, see apiserver.Options.
	ServersFile         string
	ServersFileReadOnly bool
	Log                 *slog.Logger
	// QPS and Burst bound the request rate; 0 means 50 and 100.
	QPS   float32
	Burst int
}

const serviceAccountDir = "/var/run/secrets/kubernetes.io/serviceaccount/"

// NewClient makes a client. It does not contact the server.
func NewClient(o ClientOptions) (*Client, error) {
	cfg, servers, err := restConfig(o)
	if err != nil {
		return nil, err
	}
	cfg.UserAgent = o.UserAgent
	cfg.QPS, cfg.Burst = o.QPS, o.Burst
	if cfg.QPS == 0 {
		cfg.QPS, cfg.Burst = 50, 100
	}
	// Built-in kinds travel as protobuf, which costs a third of the JSON to decode.
	proto := rest.CopyConfig(cfg)
	proto.AcceptContentTypes = "application/vnd.kubernetes.protobuf,application/json"
	proto.ContentType = "application/vnd.kubernetes.protobuf"
	cs, err := kubernetes.NewForConfig(proto)
	if err != nil {
		return nil, fmt.Errorf("kubernetes client: %w", err)
	}
	dyn, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("dynamic client: %w", err)
	}
	ext, err := apiextensions.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("definitions client: %w", err)
	}
	return &Client{Kubernetes: cs, Dynamic: dyn, Extensions: ext, Servers: servers}, nil
}

func restConfig(o ClientOptions) (*rest.Config, *apiserver.Set, error) {
	if o.Kubeconfig != "" {
		cfg, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
		if err != nil {
			return nil, nil, fmt.Errorf("kubeconfig %s: %w", o.Kubeconfig, err)
		}
		return cfg, nil, nil
	}
	host, port := os.Getenv("KUBERNETES_SERVICE_HOST"), os.Getenv("KUBERNETES_SERVICE_PORT")
	if host == "" || port == "" {
		return nil, nil, errors.New("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT must be set: not running in a pod, and no kubeconfig given")
	}
	if _, err := os.Stat(serviceAccountDir + "token"); err != nil {
		return nil, nil, fmt.Errorf("service account token: %w", err)
	}
	// Host and port may also be set by the chart (k8sServiceHost), which is how a cluster without
	// kube-proxy reaches the API server before its Services work.
	address := net.JoinHostPort(strings.Trim(host, "[]"), port)
	cfg := &rest.Config{
		Host:            "https://" + address,
		BearerTokenFile: serviceAccountDir + "token",
		TLSClientConfig: rest.TLSClientConfig{CAFile: serviceAccountDir + "ca.crt"},
	}
	if !o.Follow && len(o.Servers) == 0 {
		return cfg, nil, nil
	}
	servers, err := apiserver.New(apiserver.Options{
		Given: tryOrder(address, o.Servers, o.NodeName), File: o.ServersFile, ReadOnly: o.ServersFileReadOnly, Log: o.Log,
	})
	if err != nil {
		return nil, nil, err
	}
	return cfg, servers, servers.Join(cfg)
}

// tryOrder is the order in which API servers are tried: the address of the environment, unless it is
// just one of the servers, and these from one that depends on the node.
func tryOrder(address string, servers []string, node string) []string {
	var out []string
	if !slices.Contains(servers, address) {
		out = append(out, address)
	}
	h := fnv.New32a()
	_, _ = h.Write([]byte(node))
	for i := range servers {
		if s := servers[(i+int(h.Sum32()%uint32(len(servers))))%len(servers)]; !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// ServerVersion is what the API server says of itself.
type ServerVersion struct {
	Major, Minor, GitVersion, Platform string
}

// Version asks the API server for its version; it doubles as a reachability check.
func (c *Client) Version(ctx context.Context) (ServerVersion, error) {
	d := discovery.ToServerVersionInterfaceWithContext(c.Kubernetes.Discovery())
	info, err := d.ServerVersionWithContext(ctx)
	if err != nil {
		return ServerVersion{}, fmt.Errorf("API server version: %w", err)
	}
	return ServerVersion{Major: info.Major, Minor: info.Minor, GitVersion: info.GitVersion, Platform: info.Platform}, nil
}
