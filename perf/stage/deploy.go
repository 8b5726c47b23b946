// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"lash.internal/lash/connectivity/testbed"
	"lash.internal/lash/perf/netperf"
)

const (
	agentBinary = "/usr/bin/lash-agent"
	container   = "perf"
	nobody      = 65532
	// hostPort is the control port of servers on the hosts' network, where others may use the usual one.
	hostPort = 18865
	// dataPort is the first of the ports that tests through Services use.
	dataPort = netperf.DefaultPort + 1
)

// part is one pod to be.
type part struct {
	name, node string
	host       bool
	server     bool
}

func (s *Stage) parts() []part {
	out := []part{{ClientPod, s.Local.Name, false, false}}
	if s.o.Same {
		out = append(out, part{ServerSame, s.Local.Name, false, true})
	}
	if s.o.Other {
		out = append(out, part{ServerOther, s.OtherNode.Name, false, true})
	}
	if s.o.Host {
		out = append(out, part{HostLocal, s.Local.Name, true, true})
		if s.o.Other {
			out = append(out, part{HostOther, s.OtherNode.Name, true, true})
		}
	}
	return out
}

func (s *Stage) namespaceOf(p part) string {
	if p.host {
		return s.o.Namespace + HostSuffix
	}
	return s.o.Namespace
}

func (s *Stage) deploy(ctx context.Context) error {
	if err := s.makeNamespaces(ctx); err != nil {
		return err
	}
	for _, p := range s.parts() {
		if err := s.create(ctx, p); err != nil {
			if quota(err) {
				return fmt.Errorf("create pod %s: a quota of namespace %s leaves no room: %s", p.name, s.namespaceOf(p), err.Error())
			}
			return fmt.Errorf("create pod %s in namespace %s: %w", p.name, s.namespaceOf(p), err)
		}
	}
	return s.wait(ctx)
}

func (s *Stage) create(ctx context.Context, p part) error {
	labels := map[string]string{label: labelValue, "name": p.name}
	meta := metav1.ObjectMeta{Name: p.name, Labels: labels}
	spec := s.podSpec(p)
	if !s.o.Deployment || !p.server || p.host {
		_, err := s.o.Client.CoreV1().Pods(s.namespaceOf(p)).Create(ctx, &corev1.Pod{ObjectMeta: meta, Spec: spec}, metav1.CreateOptions{})
		return err
	}
	_, err := s.o.Client.AppsV1().Deployments(s.namespaceOf(p)).Create(ctx, &appsv1.Deployment{
		ObjectMeta: meta,
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"name": p.name}},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: spec},
		},
	}, metav1.CreateOptions{})
	return err
}

// podSpec passes Pod Security "restricted", but for the hosts' network.
func (s *Stage) podSpec(p part) corev1.PodSpec {
	port := netperf.DefaultPort
	if p.host {
		port = hostPort
	}
	return corev1.PodSpec{
		AutomountServiceAccountToken: new(false), EnableServiceLinks: new(false), TerminationGracePeriodSeconds: new(int64(1)),
		HostNetwork: p.host, Affinity: testbed.OnNode(p.node), Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		SecurityContext: &corev1.PodSecurityContext{
			RunAsNonRoot: new(true), RunAsUser: new(int64(nobody)), RunAsGroup: new(int64(nobody)),
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		Containers: []corev1.Container{{
			Name: container, Image: s.o.Image, ImagePullPolicy: corev1.PullIfNotPresent,
			Command: []string{agentBinary, "perf", "server", "--listen", ":" + strconv.Itoa(port), "--passphrase", s.passphrase},
			// A pod without a request gets next to no processor time when anything else wants some.
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m")}},
			// Ready has to mean listening. The probe runs inside the pod: one from the kubelet would already
			// need the path from node to pod.
			StartupProbe: &corev1.Probe{
				ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{
					Command: []string{agentBinary, "perf", "wait", "--timeout", "5s", "localhost:" + strconv.Itoa(port)},
				}},
				PeriodSeconds: 1, TimeoutSeconds: 10, FailureThreshold: 60,
			},
			SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), ReadOnlyRootFilesystem: new(true),
				Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			},
		}},
	}
}

// deployLimit is how long the pods may take to run.
const deployLimit = 3 * time.Minute

// errNoImage ends the wait for pods whose image cannot be had.
var errNoImage = errors.New("the image cannot be pulled")

// wait follows the pods until all are ready.
func (s *Stage) wait(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, deployLimit, errors.New("time ran out"))
	defer cancel()
	want := map[string][]string{}
	for _, p := range s.parts() {
		want[s.namespaceOf(p)] = append(want[s.namespaceOf(p)], p.name)
	}
	for _, ns := range slices.Sorted(maps.Keys(want)) {
		missing, noImage := "no pod has been created", ""
		err := testbed.FollowPods(ctx, s.o.Client, ns, "", func(pods []corev1.Pod) bool {
			missing, noImage = s.note(ns, pods, want[ns])
			return missing == "" || noImage != ""
		})
		switch {
		case noImage != "":
			return fmt.Errorf("%w: %s; use `lash cluster load-image` or `lash image push`, or name another with --image", errNoImage, noImage)
		case err != nil:
			return fmt.Errorf("the pods of namespace %s do not run (%w): %s%s", ns, err, missing, s.deploymentProblem(ctx, ns))
		}
	}
	return nil
}

// note takes down the pods that are ready, and says what is missing and which image cannot be had.
func (s *Stage) note(ns string, pods []corev1.Pod, want []string) (missing, noImage string) {
	have := map[string]bool{}
	var problems []string
	for i := range pods {
		p := &pods[i]
		if testbed.PodReady(p) && len(p.Status.PodIPs) > 0 {
			name := p.Labels["name"]
			have[name] = true
			out := &Pod{Name: name, Namespace: ns, Pod: p.Name, Node: p.Spec.NodeName}
			for _, ip := range p.Status.PodIPs {
				if a, err := netip.ParseAddr(ip.IP); err == nil {
					out.IPs = append(out.IPs, a)
				}
			}
			s.pods[name] = out
			continue
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		for _, c := range p.Status.ContainerStatuses {
			if w := c.State.Waiting; w != nil && slices.Contains([]string{"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"}, w.Reason) {
				noImage = fmt.Sprintf("%s on node %s: %s", c.Image, p.Spec.NodeName, strings.TrimSpace(w.Reason+" "+w.Message))
			}
		}
		problems = append(problems, fmt.Sprintf("%s on %s: %s", p.Name, p.Spec.NodeName, testbed.PodProblem(p)))
	}
	for _, name := range want {
		if !have[name] && len(problems) == 0 {
			problems = append(problems, name+": no pod")
		}
		if !have[name] {
			slices.Sort(problems)
			return strings.Join(problems, "; "), noImage
		}
	}
	return "", ""
}

// deploymentProblem is why a Deployment has no pods: their creation is refused to its controller.
func (s *Stage) deploymentProblem(ctx context.Context, ns string) string {
	list, err := s.o.Client.AppsV1().Deployments(ns).List(context.WithoutCancel(ctx), metav1.ListOptions{})
	if err != nil {
		return ""
	}
	for i := range list.Items {
		for _, c := range list.Items[i].Status.Conditions {
			if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
				return "; Deployment " + list.Items[i].Name + ": " + c.Message
			}
		}
	}
	return ""
}

// Service is a Service in front of a server.
type Service struct {
	Name       string
	ClusterIPs []netip.Addr
	Ingress    []netip.Addr // of its load balancer
	nodePorts  map[string]uint16
}

// Service makes a Service in front of a server. Its control and data ports are those of the server;
// node ports are whatever the cluster gives.
func (s *Stage) Service(ctx context.Context, name, server string, kind corev1.ServiceType) (*Service, error) {
	port := func(name string, p int32, proto corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: p, TargetPort: intstr.FromInt32(p), Protocol: proto}
	}
	ports := []corev1.ServicePort{port("control", netperf.DefaultPort, corev1.ProtocolTCP)}
	for i := range s.o.Streams {
		p := int32(dataPort + i)
		ports = append(ports, port(fmt.Sprintf("data-tcp-%d", i), p, corev1.ProtocolTCP), port(fmt.Sprintf("data-udp-%d", i), p, corev1.ProtocolUDP))
	}
	if kind == corev1.ServiceTypeLoadBalancer {
		// Load balancers of many clusters refuse more than one protocol.
		ports = slices.DeleteFunc(ports, func(p corev1.ServicePort) bool { return p.Protocol == corev1.ProtocolUDP })
	}
	svc, err := s.o.Client.CoreV1().Services(s.o.Namespace).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{label: labelValue}},
		Spec: corev1.ServiceSpec{
			Type: kind, Selector: map[string]string{"name": server}, Ports: ports, IPFamilyPolicy: new(corev1.IPFamilyPolicyPreferDualStack),
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create Service %s: %w", name, err)
	}
	out := &Service{Name: name, nodePorts: map[string]uint16{}}
	out.read(svc)
	return out, nil
}

func (v *Service) read(svc *corev1.Service) {
	v.ClusterIPs, v.Ingress = nil, nil
	for _, ip := range svc.Spec.ClusterIPs {
		if a, err := netip.ParseAddr(ip); err == nil {
			v.ClusterIPs = append(v.ClusterIPs, a)
		}
	}
	for _, i := range svc.Status.LoadBalancer.Ingress {
		if a, err := netip.ParseAddr(i.IP); err == nil {
			v.Ingress = append(v.Ingress, a)
		}
	}
	for _, p := range svc.Spec.Ports {
		v.nodePorts[p.Name] = uint16(p.NodePort)
	}
}

// ingressLimit is how long a load balancer may take to give an address.
const ingressLimit = 30 * time.Second

// AwaitIngress waits until the Service has an address of a load balancer, and says whether it has.
func (s *Stage) AwaitIngress(ctx context.Context, v *Service) (bool, error) {
	limited, cancel := context.WithTimeout(ctx, ingressLimit)
	defer cancel()
	c := s.o.Client.CoreV1().Services(s.o.Namespace)
	w, err := c.Watch(limited, metav1.ListOptions{FieldSelector: "metadata.name=" + v.Name})
	if err != nil {
		return false, fmt.Errorf("watch Service %s: %w", v.Name, err)
	}
	defer w.Stop()
	svc, err := c.Get(limited, v.Name, metav1.GetOptions{})
	if err != nil {
		return false, fmt.Errorf("read Service %s: %w", v.Name, err)
	}
	for {
		if v.read(svc); len(v.Ingress) > 0 {
			return true, nil
		}
		select {
		case ev, open := <-w.ResultChan():
			if !open {
				return false, ctx.Err()
			}
			if next, ok := ev.Object.(*corev1.Service); ok {
				svc = next
			}
		case <-limited.Done():
			return false, ctx.Err()
		}
	}
}
