// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"strings"
	"time"

	"k8s.io/client-go/tools/clientcmd"
)

const pkiDir = "/etc/kubernetes/pki/"

// apiPort is where the API server listens in the control plane's namespace.
const apiPort = "6443"

// issueAll makes all certificates, keys and kubeconfigs and places them in the nodes, under the
// names that kubeadm gives them.
func (k *making) issueAll() error {
	ca, err := newAuthority("kubernetes")
	if err != nil {
		return err
	}
	k.ca = ca
	admin, err := ca.client("kubernetes-admin", "system:masters")
	if err != nil {
		return err
	}
	k.admin = admin
	if err := k.issueControlPlane(ca); err != nil {
		return err
	}
	for _, n := range k.c.kubeNodes() {
		if err := k.issueNode(ca, n); err != nil {
			return err
		}
	}
	return nil
}

// apiNames are the names and addresses that clients know the API server by.
func (c *Cluster) apiNames() (dns []string, addrs []netip.Addr) {
	cp := c.controlPlane()
	dns = []string{
		"kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
		"localhost", cp.Name,
	}
	addrs = append(addrs, netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback())
	addrs = append(addrs, cp.Addresses...)
	for _, s := range c.Services {
		if p, err := netip.ParsePrefix(s); err == nil {
			addrs = append(addrs, hostAddr(p, 1))
		}
	}
	return dns, addrs
}

func (k *making) issueControlPlane(ca *authority) error {
	cp := k.c.controlPlane()
	saPub, saKey, err := newSigningKey()
	if err != nil {
		return err
	}
	files := map[string][]byte{
		pkiDir + "ca.crt": ca.pair.cert, pkiDir + "ca.key": ca.pair.key,
		pkiDir + "sa.pub": saPub, pkiDir + "sa.key": saKey,
	}
	dns, addrs := k.c.apiNames()
	local := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for name, issue := range map[string]func() (keyPair, error){
		"apiserver":                func() (keyPair, error) { return ca.server("kube-apiserver", dns, addrs) },
		"etcd-server":              func() (keyPair, error) { return ca.server("etcd", []string{"localhost", cp.Name}, local) },
		"apiserver-etcd-client":    func() (keyPair, error) { return ca.client("kube-apiserver-etcd-client") },
		"apiserver-kubelet-client": func() (keyPair, error) { return ca.client("kube-apiserver-kubelet-client", "system:masters") },
	} {
		pair, err := issue()
		if err != nil {
			return err
		}
		files[pkiDir+name+".crt"], files[pkiDir+name+".key"] = pair.cert, pair.key
	}
	for file, user := range map[string]string{
		"controller-manager": "system:kube-controller-manager",
		"scheduler":          "system:kube-scheduler",
		"admin":              "",
	} {
		pair := k.admin
		if user != "" {
			if pair, err = ca.client(user); err != nil {
				return err
			}
		} else {
			user = "kubernetes-admin"
		}
		data, err := k.componentConfig(user, pair)
		if err != nil {
			return err
		}
		files["/etc/kubernetes/"+file+".conf"] = data
	}
	return k.machines[cp.Name].write(files)
}

// componentConfig is a kubeconfig for use inside the cluster's nodes.
func (k *making) componentConfig(user string, pair keyPair) ([]byte, error) {
	data, err := clientcmd.Write(*kubeconfigFor(k.c.FullName(), k.c.internalURL(), k.ca.pair.cert, user, pair))
	if err != nil {
		return nil, fmt.Errorf("kubeconfig of %s: %w", user, err)
	}
	return data, nil
}

// internalURL is the API server as nodes reach it.
func (c *Cluster) internalURL() string {
	return "https://" + net.JoinHostPort(c.controlPlane().Addresses[0].String(), apiPort)
}

// startControlPlane starts etcd, the API server and the way to it from the machine's loopback,
// waits until the API is ready, and starts the controllers.
func (k *making) startControlPlane(ctx context.Context) error {
	m := k.machines[k.c.controlPlane().Name]
	if err := k.daemon(ctx, m, "etcd", process{path: "etcd", args: k.c.etcdArgs()}); err != nil {
		return err
	}
	if err := k.daemon(ctx, m, "kube-apiserver", process{path: "kube-apiserver", args: k.c.apiserverArgs()}); err != nil {
		return err
	}
	if err := k.forward(ctx, m); err != nil {
		return err
	}
	if err := k.waitAPI(ctx); err != nil {
		return err
	}
	if err := k.daemon(ctx, m, "kube-controller-manager", process{path: "kube-controller-manager", args: k.c.controllerArgs()}); err != nil {
		return err
	}
	return k.daemon(ctx, m, "kube-scheduler", process{path: "kube-scheduler", args: []string{
		"--kubeconfig=/etc/kubernetes/scheduler.conf",
		"--authentication-kubeconfig=/etc/kubernetes/scheduler.conf",
		"--authorization-kubeconfig=/etc/kubernetes/scheduler.conf",
		"--bind-address=127.0.0.1", "--leader-elect=false",
	}})
}

// forward opens the port on the machine's loopback and hands it to a process in the control
// plane's namespaces.
func (k *making) forward(ctx context.Context, m *machine) error {
	ln, err := net.Listen("tcp4", net.JoinHostPort("127.0.0.1", "0"))
	if err != nil {
		return fmt.Errorf("port for the API server: %w", err)
	}
	defer ln.Close()
	tcp, ok := ln.(*net.TCPListener)
	if !ok {
		return fmt.Errorf("port for the API server: listener is %T", ln)
	}
	file, err := tcp.File()
	if err != nil {
		return fmt.Errorf("port for the API server: %w", err)
	}
	defer file.Close()
	addr, err := netip.ParseAddrPort(ln.Addr().String())
	if err != nil {
		return fmt.Errorf("port for the API server: %w", err)
	}
	k.c.Port = int(addr.Port())
	target := net.JoinHostPort(k.c.controlPlane().Addresses[0].String(), apiPort)
	return k.daemon(ctx, m, "forward", process{path: "node", args: []string{"forward", target}, files: []*os.File{file}})
}

// waitAPI asks the API server for its readiness until it is ready.
func (k *making) waitAPI(ctx context.Context) error {
	client, err := k.client()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		_, err := client.Discovery().RESTClient().Get().AbsPath("/readyz").DoRaw(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the API server does not get ready: %w (last answer: %w); see %s", context.Cause(ctx), err, k.logOf(k.c.controlPlane().Name, "kube-apiserver"))
		case err := <-k.died:
			return err
		case <-tick.C:
		}
	}
}

func (c *Cluster) etcdArgs() []string {
	const url = "https://127.0.0.1:2379"
	return []string{
		"--name=" + c.controlPlane().Name, "--data-dir=/var/lib/etcd",
		"--listen-client-urls=" + url, "--advertise-client-urls=" + url,
		"--listen-peer-urls=https://127.0.0.1:2380", "--initial-advertise-peer-urls=https://127.0.0.1:2380",
		"--initial-cluster=" + c.controlPlane().Name + "=https://127.0.0.1:2380",
		"--cert-file=" + pkiDir + "etcd-server.crt", "--key-file=" + pkiDir + "etcd-server.key",
		"--trusted-ca-file=" + pkiDir + "ca.crt", "--client-cert-auth",
		"--peer-cert-file=" + pkiDir + "etcd-server.crt", "--peer-key-file=" + pkiDir + "etcd-server.key",
		"--peer-trusted-ca-file=" + pkiDir + "ca.crt", "--peer-client-cert-auth",
		"--unsafe-no-fsync", // a throw-away cluster: speed before durability
	}
}

func (c *Cluster) apiserverArgs() []string {
	bind := "0.0.0.0"
	if c.hasIPv6() {
		bind = "::"
	}
	return []string{
		"--advertise-address=" + c.controlPlane().Addresses[0].String(),
		"--bind-address=" + bind, "--secure-port=" + apiPort,
		"--etcd-servers=https://127.0.0.1:2379", "--etcd-cafile=" + pkiDir + "ca.crt",
		"--etcd-certfile=" + pkiDir + "apiserver-etcd-client.crt", "--etcd-keyfile=" + pkiDir + "apiserver-etcd-client.key",
		"--client-ca-file=" + pkiDir + "ca.crt",
		"--tls-cert-file=" + pkiDir + "apiserver.crt", "--tls-private-key-file=" + pkiDir + "apiserver.key",
		"--kubelet-client-certificate=" + pkiDir + "apiserver-kubelet-client.crt",
		"--kubelet-client-key=" + pkiDir + "apiserver-kubelet-client.key",
		"--kubelet-certificate-authority=" + pkiDir + "ca.crt",
		"--kubelet-preferred-address-types=InternalIP", // node names mean nothing to a resolver here
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + pkiDir + "sa.pub", "--service-account-signing-key-file=" + pkiDir + "sa.key",
		"--service-cluster-ip-range=" + strings.Join(c.Services, ","),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
	}
}

func (c *Cluster) controllerArgs() []string {
	const conf = "/etc/kubernetes/controller-manager.conf"
	args := []string{
		"--kubeconfig=" + conf, "--authentication-kubeconfig=" + conf, "--authorization-kubeconfig=" + conf,
		"--bind-address=127.0.0.1", "--leader-elect=false",
		"--client-ca-file=" + pkiDir + "ca.crt", "--root-ca-file=" + pkiDir + "ca.crt",
		"--cluster-signing-cert-file=" + pkiDir + "ca.crt", "--cluster-signing-key-file=" + pkiDir + "ca.key",
		"--service-account-private-key-file=" + pkiDir + "sa.key", "--use-service-account-credentials=true",
		"--cluster-name=" + c.FullName(),
		"--allocate-node-cidrs=true", "--cluster-cidr=" + strings.Join(c.PodCIDRs, ","),
		"--service-cluster-ip-range=" + strings.Join(c.Services, ","),
		"--flex-volume-plugin-dir=" + path.Join("/var/lib/kubelet", "volumeplugins"),
	}
	for _, s := range c.PodCIDRs {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			continue // checked before the cluster was planned
		}
		mask, err := nodeMask(p)
		if err != nil {
			continue
		}
		switch {
		case len(c.PodCIDRs) == 1:
			args = append(args, fmt.Sprintf("--node-cidr-mask-size=%d", mask))
		case p.Addr().Is4():
			args = append(args, fmt.Sprintf("--node-cidr-mask-size-ipv4=%d", mask))
		default:
			args = append(args, fmt.Sprintf("--node-cidr-mask-size-ipv6=%d", mask))
		}
	}
	return args
}

func (c *Cluster) hasIPv6() bool {
	for _, s := range c.Subnets {
		if s.Prefix.Addr().Is6() {
			return true
		}
	}
	return false
}
