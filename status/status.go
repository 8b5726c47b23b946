// SPDX-License-Identifier: Apache-2.0

// Package status collects what can be known about the network of a cluster from outside: the
// workloads and pods that it consists of, what each agent says of itself, how many pods it
// serves, and what is wrong, with cause, evidence and next step. It prints nothing.
//
//	API server --lists--+
//	                    +--> Status --> lash status (text, JSON)
//	agents ----exec-----+
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"lash.internal/lash/agent/api"
)

// Names of the workloads that the network consists of.
const (
	Agent       = "cilium"
	Operator    = "cilium-operator"
	Envoy       = "cilium-envoy"
	Relay       = "hubble-relay"
	UI          = "hubble-ui"
	ClusterMesh = "clustermesh-apiserver"
)

// ErrNoAnswer means that the API server takes requests and does not answer them.
var ErrNoAnswer = errors.New("the API server does not answer")

// agentContainer is the container that the in-pod commands run in.
const agentContainer = "cilium-agent"

// part is a workload of the network and the labels of its pods.
type part struct {
	name, kind string
	selectors  []string
	required   bool
}

var parts = []part{
	{name: Agent, kind: "DaemonSet", selectors: []string{"k8s-app=cilium"}, required: true},
	{name: Envoy, kind: "DaemonSet", selectors: []string{"name=cilium-envoy"}},
	{name: Operator, kind: "Deployment", selectors: []string{"io.cilium/app=operator", "name=cilium-operator"}},
	{name: Relay, kind: "Deployment", selectors: []string{"k8s-app=hubble-relay"}},
	{name: UI, kind: "Deployment", selectors: []string{"k8s-app=hubble-ui"}},
	{name: ClusterMesh, kind: "Deployment", selectors: []string{"k8s-app=clustermesh-apiserver"}},
}

// Exec runs a command in a container and returns what it printed.
type Exec func(ctx context.Context, namespace, pod, container string, command ...string) (stdout, stderr []byte, err error)

// Collector knows where to look.
type Collector struct {
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Exec      Exec
	Namespace string
	Release   string // Helm release
	Workers   int    // agents asked at a time; 0 means 5
	// ListTimeout is how long the API server may take to answer all lists, ExecTimeout bounds the
	// question to one agent; 0 means 10 s.
	ListTimeout, ExecTimeout time.Duration
}

// Problem is something that is wrong, or that the user should know.
type Problem struct {
	Message  string `json:"message"`
	Evidence string `json:"evidence,omitempty"` // what shows it
	Next     string `json:"next,omitempty"`     // what to do about it
}

// Problems are those of one pod, or of the workload as a whole.
type Problems struct {
	Errors   []Problem `json:"Errors"`
	Warnings []Problem `json:"Warnings"`
	Disabled bool      `json:"Disabled"`
}

// PodState counts the pods of one workload.
type PodState struct {
	Type        string `json:"Type"` // DaemonSet, Deployment
	Desired     int    `json:"Desired"`
	Ready       int    `json:"Ready"`
	Available   int    `json:"Available"`
	Unavailable int    `json:"Unavailable"`
}

// PodsCount counts the pods that need a network, and those that have ours.
type PodsCount struct {
	All      int `json:"all"`
	ByCilium int `json:"by_cilium"`
	// A number that could not be found out is 0, and CollectionErrors says why.
	AllUnknown, ByCiliumUnknown bool `json:"-"`
}

// Status is the whole picture. Maps are by workload, then by pod, image or phase.
type Status struct {
	ImageCount       map[string]map[string]int      `json:"image_count"`
	PhaseCount       map[string]map[string]int      `json:"phase_count"`
	PodState         map[string]PodState            `json:"pod_state"`
	PodsCount        PodsCount                      `json:"pods_count"`
	CiliumStatus     map[string]*api.StatusResponse `json:"cilium_status"`
	CiliumEndpoints  map[string][]api.Endpoint      `json:"cilium_endpoints"`
	Errors           map[string]map[string]Problems `json:"errors"`
	CollectionErrors []string                       `json:"collection_errors"`
	HelmChartVersion string                         `json:"helm_chart_version,omitempty"`
	AppVersion       string                         `json:"app_version,omitempty"`
	ConfigErrors     []string                       `json:"config_errors"`
	// NetworkPolicies is the number of NetworkPolicy objects of the cluster.
	NetworkPolicies int `json:"network_policies"`
	// Code is the exit code that goes with the status.
	Code int `json:"code"`

	mu sync.Mutex
}

func (s *Status) problems(workload, pod string, change func(*Problems)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Errors[workload] == nil {
		s.Errors[workload] = map[string]Problems{}
	}
	p := s.Errors[workload][pod]
	change(&p)
	s.Errors[workload][pod] = p
}

func (s *Status) addError(workload, pod string, p Problem) {
	s.problems(workload, pod, func(x *Problems) {
		if !slices.Contains(x.Errors, p) {
			x.Errors = append(x.Errors, p)
		}
	})
}

func (s *Status) addWarning(workload, pod string, p Problem) {
	s.problems(workload, pod, func(x *Problems) {
		if !slices.Contains(x.Warnings, p) {
			x.Warnings = append(x.Warnings, p)
		}
	})
}

// Count sums up the problems of one workload, or of all for an empty name.
func (s *Status) Count(workload string) (errs, warnings int, disabled bool) {
	for w, pods := range s.Errors {
		if workload != "" && w != workload {
			continue
		}
		for _, p := range pods {
			errs += len(p.Errors)
			warnings += len(p.Warnings)
			disabled = disabled || p.Disabled
		}
	}
	return errs, warnings, disabled
}

// OK says whether nothing is wrong. Warnings count only when asked for.
func (s *Status) OK(warningsToo bool) bool {
	e, w, _ := s.Count("")
	return e == 0 && len(s.CollectionErrors) == 0 && (w == 0 || !warningsToo)
}

// gather is the state of one collection: the lists, and the result.
type gather struct {
	*Collector
	out         *Status
	daemonSets  []appsv1.DaemonSet
	deployments []appsv1.Deployment
	pods        []corev1.Pod // of the namespace
}

var endpointsResource = schema.GroupVersionResource{Group: "cilium.io", Version: "v2", Resource: "ciliumendpoints"}

// Collect asks the API server and every running agent. The error is that of an API server that
// cannot be asked at all; everything else is in the result.
func (c *Collector) Collect(ctx context.Context) (*Status, error) {
	g := &gather{Collector: c, out: &Status{
		ImageCount: map[string]map[string]int{}, PhaseCount: map[string]map[string]int{},
		PodState: map[string]PodState{}, CiliumStatus: map[string]*api.StatusResponse{},
		CiliumEndpoints: map[string][]api.Endpoint{}, Errors: map[string]map[string]Problems{},
		CollectionErrors: []string{}, ConfigErrors: []string{},
	}}
	agentCtx, limit := ctx, orTenSeconds(c.ListTimeout)
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	// The agents are asked as soon as the pods of the namespace are known; the other lists are
	// read meanwhile.
	var asked sync.WaitGroup
	needed := parallel(
		func() error {
			l, err := c.Client.AppsV1().DaemonSets(c.Namespace).List(ctx, metav1.ListOptions{})
			if err == nil {
				g.daemonSets = l.Items
			}
			return err
		},
		func() error {
			l, err := c.Client.AppsV1().Deployments(c.Namespace).List(ctx, metav1.ListOptions{})
			if err == nil {
				g.deployments = l.Items
			}
			return err
		},
		func() error {
			l, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{})
			if err != nil {
				return err
			}
			g.pods = l.Items
			asked.Go(func() { g.agents(agentCtx) })
			return nil
		},
		func() error { g.optional(ctx); return nil },
	)
	asked.Wait()
	if needed != nil {
		if agentCtx.Err() == nil && ctx.Err() != nil {
			needed = fmt.Errorf("%w within %s: %w", ErrNoAnswer, limit, needed)
		}
		return nil, needed
	}
	g.workloads()
	g.podProblems(agentCtx)
	g.dropEchoes()
	g.warnings()
	if !g.out.OK(false) {
		g.out.Code = 1
	}
	return g.out, nil
}

func orTenSeconds(d time.Duration) time.Duration {
	if d <= 0 {
		return 10 * time.Second
	}
	return d
}

// parallel runs all functions at once and returns the first error in their order.
func parallel(fs ...func() error) error {
	errs := make([]error, len(fs))
	var wg sync.WaitGroup
	for i, f := range fs {
		wg.Go(func() { errs[i] = f() })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// optional reads what the picture can do without: a failure is reported in it.
func (g *gather) optional(ctx context.Context) {
	var mu sync.Mutex
	failed := func(what string, err error) {
		mu.Lock()
		defer mu.Unlock()
		g.out.CollectionErrors = append(g.out.CollectionErrors, fmt.Sprintf("%s: %v", what, err))
	}
	_ = parallel(
		func() error {
			// Pods with a network of their own that have not ended.
			l, err := g.Client.CoreV1().Pods("").List(ctx, metav1.ListOptions{FieldSelector: "status.phase!=Succeeded,status.phase!=Failed"})
			if err != nil {
				failed("listing pods", err)
				g.out.PodsCount.AllUnknown = true
				return nil
			}
			for _, p := range l.Items {
				if !p.Spec.HostNetwork && (p.Status.Phase == corev1.PodRunning || p.Status.Phase == corev1.PodPending) {
					g.out.PodsCount.All++
				}
			}
			return nil
		},
		func() error {
			l, err := g.Dynamic.Resource(endpointsResource).List(ctx, metav1.ListOptions{})
			switch {
			case err == nil:
				g.out.PodsCount.ByCilium = len(l.Items)
			case !apierrors.IsNotFound(err) && !meta.IsNoMatchError(err):
				failed("listing CiliumEndpoints", err)
				g.out.PodsCount.ByCiliumUnknown = true
			}
			return nil
		},
		func() error {
			l, err := g.Client.NetworkingV1().NetworkPolicies("").List(ctx, metav1.ListOptions{Limit: 1})
			if err != nil {
				failed("listing NetworkPolicies", err)
				return nil
			}
			g.out.NetworkPolicies = len(l.Items)
			if l.RemainingItemCount != nil {
				g.out.NetworkPolicies += int(*l.RemainingItemCount)
			}
			return nil
		},
		func() error {
			chart, app, err := releaseVersion(ctx, g.Client, g.Namespace, g.Release)
			if err != nil {
				failed("reading the Helm release "+g.Release, err)
				return nil
			}
			g.out.HelmChartVersion, g.out.AppVersion = chart, app
			return nil
		},
		func() error { g.configNotes(ctx); return nil },
	)
	slices.Sort(g.out.CollectionErrors)
}

// configNotes reads the notes that the installation left on the configuration.
func (g *gather) configNotes(ctx context.Context) {
	cm, err := g.Client.CoreV1().ConfigMaps(g.Namespace).Get(ctx, "cilium-config", metav1.GetOptions{})
	if err != nil {
		return // the missing agent says it
	}
	for k, v := range cm.Annotations {
		if len(k) >= len("config.cilium.io") && k[:len("config.cilium.io")] == "config.cilium.io" {
			g.out.ConfigErrors = append(g.out.ConfigErrors, v)
		}
	}
	slices.Sort(g.out.ConfigErrors)
}

// agents asks every running agent for its status and its endpoints.
func (g *gather) agents(ctx context.Context) {
	workers := g.Workers
	if workers <= 0 {
		workers = 5
	}
	limit := orTenSeconds(g.ExecTimeout)
	slots := make(chan struct{}, workers)
	var wg sync.WaitGroup
	for i := range g.pods {
		p := &g.pods[i]
		if workloadOf(p) != Agent || p.Status.Phase != corev1.PodRunning || !containerRuns(p, agentContainer) {
			continue
		}
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			g.agent(ctx, p, limit)
		})
	}
	wg.Wait()
}

// ask runs an in-pod command and decodes its JSON output. The output counts even when the command
// says by its exit code that the agent is not healthy.
func (g *gather) ask(ctx context.Context, pod string, out any, command ...string) error {
	stdout, stderr, err := g.Exec(ctx, g.Namespace, pod, agentContainer, command...)
	if derr := json.Unmarshal(stdout, out); derr == nil {
		return nil
	} else if err == nil {
		return fmt.Errorf("decode answer: %w", derr)
	}
	if text := lastLine(stderr); text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// agent asks one agent. One command for both answers: starting a command in a container costs more
// than what it does.
func (g *gather) agent(ctx context.Context, p *corev1.Pod, limit time.Duration) {
	pod := p.Name
	var r api.NodeReport
	asking, cancel := context.WithTimeout(ctx, limit)
	err := g.ask(asking, pod, &r, "cilium", "status", "-o", "json", "--endpoints")
	cancel()
	if err != nil {
		g.out.addError(Agent, pod, Problem{
			Message:  "the agent does not answer",
			Evidence: join(err.Error(), g.lastWords(ctx, p, agentContainer)),
			Next:     fmt.Sprintf("kubectl -n %s logs %s -c %s", g.Namespace, pod, agentContainer),
		})
		return
	}
	g.out.mu.Lock()
	g.out.CiliumStatus[pod] = &r.StatusResponse
	g.out.CiliumEndpoints[pod] = r.Endpoints
	g.out.mu.Unlock()
	g.judgeAgent(pod, &r.StatusResponse)
	g.judgeEndpoints(pod, r.Endpoints)
}

// judgeAgent turns what an agent says of itself into problems.
func (g *gather) judgeAgent(pod string, st *api.StatusResponse) {
	next := fmt.Sprintf("kubectl -n %s exec %s -- cilium status --verbose", g.Namespace, pod)
	judge := func(name string, s *api.Status) {
		if s == nil {
			return
		}
		p := Problem{Message: fmt.Sprintf("%s: %s", name, s.Msg), Next: next}
		switch s.State {
		case api.StateFailure:
			g.out.addError(Agent, pod, p)
		case api.StateWarning:
			g.out.addWarning(Agent, pod, p)
		}
	}
	judge("agent", st.Cilium)
	judge("datapath probe", st.DatapathProbe)
	judge("CNI configuration", st.CNIFile)
	judge("kvstore", st.Kvstore)
	if k := st.Kubernetes; k != nil {
		judge("kubernetes", &api.Status{State: k.State, Msg: k.Msg})
	}
	if st.Cluster != nil {
		judge("cluster health", st.Cluster.CiliumHealth)
	}
	if h := st.Hubble; h != nil {
		judge("hubble", &api.Status{State: h.State, Msg: h.Msg})
	}
	g.judgeKernel(pod, st, next)
	for _, c := range st.Controllers {
		s := c.Status
		if s.ConsecutiveFailureCount == 0 {
			continue
		}
		since := "its start"
		if !s.LastSuccessTimestamp.IsZero() {
			since = time.Since(s.LastSuccessTimestamp).Truncate(time.Second).String()
		}
		g.out.addError(Agent, pod, Problem{
			Message: fmt.Sprintf("controller %s is failing since %s (%dx): %s", c.Name, since, s.ConsecutiveFailureCount, s.LastFailureMsg),
			Next:    next,
		})
	}
}

// MapWarning is the share of a map in use from which on it counts as nearly full.
const MapWarning = 0.9

// judgeKernel looks at what is in the kernel of the node: programs that are not where they belong,
// and maps that are nearly full.
func (g *gather) judgeKernel(pod string, st *api.StatusResponse, next string) {
	if st.Datapath != nil {
		for _, a := range st.Datapath.Attachments {
			if a.State != api.AttachmentMissing {
				continue
			}
			p := Problem{
				Message: fmt.Sprintf("no program on %s %s, %s belongs there: its packets pass unseen", a.Device, a.Direction, a.Program),
				Next:    fmt.Sprintf("the agent puts it back within seconds; if it does not: kubectl -n %s delete pod %s", g.Namespace, pod),
			}
			if len(a.Others) > 0 {
				p.Evidence = "there is " + strings.Join(a.Others, ", ")
			}
			g.out.addError(Agent, pod, p)
		}
	}
	if st.BPFMaps == nil {
		return
	}
	for _, m := range st.BPFMaps.Maps {
		if share, ok := m.Fill(); ok && share >= MapWarning {
			g.out.addWarning(Agent, pod, Problem{
				Message: fmt.Sprintf("map %s is %.0f %% full: %d of %d entries", m.Name, 100*share, m.Entries, m.Size),
				Next:    next,
			})
		}
	}
}

func (g *gather) judgeEndpoints(pod string, eps []api.Endpoint) {
	notReady := 0
	for _, ep := range eps {
		if ep.Status == nil || ep.Status.State != "ready" {
			notReady++
		}
	}
	if notReady > 0 {
		g.out.addWarning(Agent, pod, Problem{
			Message: fmt.Sprintf("%d endpoints are not ready", notReady),
			Next:    fmt.Sprintf("kubectl -n %s exec %s -- cilium endpoint list", g.Namespace, pod),
		})
	}
}

// warnings adds what is right but not what a user may expect.
func (g *gather) warnings() {
	if n := g.out.NetworkPolicies; n > 0 {
		what := "NetworkPolicies exist and are"
		if n == 1 {
			what = "NetworkPolicy exists and is"
		}
		g.out.addWarning(Agent, "", Problem{
			Message: fmt.Sprintf("%d %s not enforced: this version has no network policy", n, what),
			Next:    "kubectl get networkpolicies -A",
		})
	}
}
