// SPDX-License-Identifier: Apache-2.0

// Package kube is the adapter from a kubeconfig to what the libraries ask for: typed and dynamic
// clients, exec into a container, port-forward, waiting by watch, and errors that say what to do.
package kube

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/spf13/pflag"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/genericclioptions"
)

// DefaultNamespace is where the network is installed unless --namespace or CILIUM_NAMESPACE says
// otherwise.
const DefaultNamespace = "kube-system"

// DefaultRelease is the name of the Helm release.
const DefaultRelease = "cilium"

// Flags are kubectl's connection flags plus the few of our own that every command has.
type Flags struct {
	config  *genericclioptions.ConfigFlags
	release string
}

// shown are the connection flags that --help lists; kubectl's other ones work but are not listed.
var shown = map[string]bool{"context": true, "kubeconfig": true, "namespace": true, "as": true, "as-group": true}

// usage replaces the help of some flags with words that fit here.
var usage = map[string]string{
	"kubeconfig": "Path of the kubeconfig file",
	"context":    "Kubeconfig context to use",
	"namespace":  "Namespace the network is installed in (also CILIUM_NAMESPACE)",
	"as":         "User to impersonate",
	"as-group":   "Group to impersonate (repeat for several)",
}

// NewFlags returns the flags with their defaults; getenv is the process's environment.
func NewFlags(getenv func(string) string) *Flags {
	f := &Flags{config: genericclioptions.NewConfigFlags(true).WithDiscoveryBurst(300).WithDiscoveryQPS(50)}
	ns := getenv("CILIUM_NAMESPACE")
	if ns == "" {
		ns = DefaultNamespace
	}
	f.config.Namespace = &ns
	return f
}

// AddTo binds the flags.
func (f *Flags) AddTo(fs *pflag.FlagSet) {
	own := pflag.NewFlagSet("kube", pflag.ContinueOnError)
	f.config.AddFlags(own)
	own.VisitAll(func(fl *pflag.Flag) {
		fl.Hidden = !shown[fl.Name]
		if u := usage[fl.Name]; u != "" {
			fl.Usage = u
		}
	})
	fs.AddFlagSet(own)
	fs.StringVar(f.config.Context, "kube-context", "", "")
	_ = fs.MarkHidden("kube-context") // helm's spelling; the flag exists, so this cannot fail
	fs.StringVar(&f.release, "helm-release-name", DefaultRelease, "Name of the Helm release")
}

// Namespace is the namespace that the network is installed in.
func (f *Flags) Namespace() string { return *f.config.Namespace }

// Release is the name of the Helm release.
func (f *Flags) Release() string { return f.release }

// Getter is what Helm and the kubectl libraries build their own clients from.
func (f *Flags) Getter() genericclioptions.RESTClientGetter { return f.config }

// where says which kubeconfig the flags lead to, for messages.
func (f *Flags) where() string {
	loader := f.config.ToRawKubeConfigLoader().ConfigAccess()
	if p := loader.GetExplicitFile(); p != "" {
		return p
	}
	return strings.Join(loader.GetLoadingPrecedence(), ", ")
}

// contextNames returns the context in use, its cluster entry, that entry's server URL, and the
// namespace of the context. Names are empty when the process runs in a pod without a kubeconfig.
func (f *Flags) contextNames() (context, cluster, server, namespace string, err error) {
	raw, err := f.config.ToRawKubeConfigLoader().RawConfig()
	if err != nil {
		return "", "", "", "", fmt.Errorf("reading %s: %w", f.where(), err)
	}
	context = raw.CurrentContext
	if *f.config.Context != "" {
		context = *f.config.Context
	}
	if c := raw.Contexts[context]; c != nil {
		cluster, namespace = c.Cluster, c.Namespace
	} else if context != "" {
		return "", "", "", "", fmt.Errorf("%w: there is no context %q in %s (it has: %s)",
			ErrConfig, context, f.where(), namesOf(raw.Contexts))
	}
	if *f.config.ClusterName != "" {
		cluster = *f.config.ClusterName
	}
	if c := raw.Clusters[cluster]; c != nil {
		server = c.Server
	}
	return context, cluster, server, cmp.Or(namespace, metav1.NamespaceDefault), nil
}

// WithContext is the same flags for another context of the kubeconfig.
func (f *Flags) WithContext(name string) *Flags {
	c := genericclioptions.NewConfigFlags(true).WithDiscoveryBurst(300).WithDiscoveryQPS(50)
	c.KubeConfig, c.Namespace, c.Timeout, c.Impersonate = f.config.KubeConfig, f.config.Namespace, f.config.Timeout, f.config.Impersonate
	c.Context = &name
	return &Flags{config: c, release: f.release}
}
