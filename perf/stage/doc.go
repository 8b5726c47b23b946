// SPDX-License-Identifier: Apache-2.0

// Package stage is what measurements in a cluster are played on: a namespace with a client and servers,
// one beside it for pods on the hosts' network, Services in front of the servers, and the facts of the
// cluster. Everything is removed again by Close.
//
//	Open     finds two nodes and an image, deploys, waits
//	Source   a place to measure from: a pod, a node, a host outside
//	Target   a place to measure to: a pod, a node, a Service in one of its forms
//	Measure  one sample from a source to a target
//
// Pods on the pod network run under Pod Security "restricted". The servers want a passphrase, which is
// new for each stage.
package stage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"lash.internal/lash/connectivity/testbed"
	"lash.internal/lash/perf/report"
)

// Exec runs a command in a container until it ends or ctx does.
type Exec func(ctx context.Context, namespace, pod, container string, out, errOut io.Writer, command ...string) error

// DefaultNamespace is the namespace of measurements. Pods on the hosts' network are in one of the same
// name with HostSuffix behind it.
const (
	DefaultNamespace = "lash-perf"
	HostSuffix       = "-host"
)

// Options say where to play.
type Options struct {
	Name    string // of the cluster, in reports
	Client  kubernetes.Interface
	Exec    Exec
	Network string // namespace that the network is installed in
	// Namespace is the one that is made, DefaultNamespace when empty.
	Namespace string
	// Image is the one of the pods; empty takes the agents', and DefaultImage where there are none.
	Image, DefaultImage string
	// ClientSelector and ServerSelector limit the nodes.
	ClientSelector, ServerSelector string
	// Same and Other say whether there are a server on the client's node and one on another.
	Same, Other bool
	// Host adds pods on the hosts' network.
	Host bool
	// Deployment runs the servers as Deployments instead of bare pods.
	Deployment bool
	// Streams is how many data ports Services have.
	Streams int
	// Version is of this program, CNI what the caller knows of a network that cannot be told from outside.
	Version, CNI string
	Say          func(format string, args ...any)
}

// Stage is a cluster with everything deployed.
type Stage struct {
	o          Options
	Cluster    report.Cluster
	Local      Node // of the client and of the server on the same node
	OtherNode  Node // of the other server; its name is empty when there is none
	passphrase string
	pods       map[string]*Pod
}

// Node is a node that takes part.
type Node struct {
	Name string
	IPs  []netip.Addr
}

// IP is the node's address of a family, 4 or 6.
func (n Node) IP(family int) netip.Addr { return pick(n.IPs, family) }

// Names of the pods.
const (
	ClientPod   = "client"
	ServerSame  = "server-same"
	ServerOther = "server-other"
	HostLocal   = "host-local"
	HostOther   = "host-other"
)

// Pod is a pod that runs.
type Pod struct {
	Name, Namespace, Pod, Node string
	IPs                        []netip.Addr
}

// IP is the pod's address of a family.
func (p *Pod) IP(family int) netip.Addr { return pick(p.IPs, family) }

func pick(all []netip.Addr, family int) netip.Addr {
	for _, a := range all {
		if a.Unmap().Is4() == (family == 4) {
			return a
		}
	}
	return netip.Addr{}
}

// Label that marks what belongs to measurements.
const (
	label      = "app.kubernetes.io/name"
	labelValue = "lash-perf"
)

// cleanLimit bounds the removal, which also happens after ctx has ended. Clusters remove their objects one
// by one: three of them on one machine took more than five minutes for 10,000 Services each.
const cleanLimit = 30 * time.Minute

func (o *Options) bed() testbed.Bed {
	return testbed.Bed{
		Client: o.Client, Label: label, Value: labelValue, Maker: "a measurement", Flag: "--test-namespace", Say: o.Say,
	}
}

func (o *Options) fill() {
	if o.Namespace == "" {
		o.Namespace = DefaultNamespace
	}
	if o.Network == "" {
		o.Network = "kube-system"
	}
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	o.Streams = max(o.Streams, 1)
}

// Open deploys. When it fails, nothing is left behind.
func Open(ctx context.Context, o Options) (*Stage, error) {
	o.fill()
	s := &Stage{o: o, passphrase: rand.Text(), pods: map[string]*Pod{}}
	if err := s.discover(ctx); err != nil {
		return nil, err
	}
	err := s.deploy(ctx)
	if err != nil {
		return nil, errors.Join(err, s.Close(ctx))
	}
	return s, nil
}

// Close removes what Open and Service have made, even when ctx has ended.
func (s *Stage) Close(ctx context.Context) error { return Clean(ctx, s.o) }

// Clean removes what a stage has left behind.
func Clean(ctx context.Context, o Options) error {
	o.fill()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- remove(ctx, &o, o.Namespace+HostSuffix) }()
	err := remove(ctx, &o, o.Namespace)
	return errors.Join(err, <-ended)
}

// remove deletes a namespace. One that is not ours was none of ours to make either.
func remove(ctx context.Context, o *Options, name string) error {
	if err := o.bed().Remove(ctx, name); err != nil && !errors.Is(err, testbed.ErrForeign) {
		return err
	}
	return nil
}

// makeNamespaces makes them, with the Pod Security that their pods need.
func (s *Stage) makeNamespaces(ctx context.Context) error {
	levels := map[string]string{s.o.Namespace: "restricted"}
	if s.o.Host {
		levels[s.o.Namespace+HostSuffix] = "privileged"
	}
	for name, level := range levels {
		obj := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"pod-security.kubernetes.io/enforce": level}}}
		if err := s.o.bed().Make(ctx, obj); err != nil {
			return fmt.Errorf("create namespace %s: %w", name, err)
		}
	}
	return nil
}

// Families are the IP versions that the client has an address of.
func (s *Stage) Families() []int {
	var out []int
	for _, f := range []int{4, 6} {
		if s.pods[ClientPod].IP(f).IsValid() {
			out = append(out, f)
		}
	}
	return out
}

// Pod is a pod by its name, nil when there is none.
func (s *Stage) Pod(name string) *Pod { return s.pods[name] }

// FamilyName is a family in words.
func FamilyName(family int) string { return map[int]string{4: "IPv4", 6: "IPv6"}[family] }

// quota says whether a refusal is about an amount and not about a permission.
func quota(err error) bool { return strings.Contains(err.Error(), "exceeded quota") }
