// SPDX-License-Identifier: Apache-2.0

package check

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"lash.internal/lash/connectivity/probe"
)

// cleanLimit bounds the cleaning up, which also happens after ctx has ended.
const cleanLimit = 60 * time.Second

// Run does the whole test. A test that fails is in the report and makes the error ErrFailed;
// other errors mean that the run did not come to an end, and the report holds what there is.
func Run(ctx context.Context, o Options) (*Report, error) {
	o.fill()
	all := Scenarios()
	filter, err := ParseFilter(o.Tests, all)
	if err != nil {
		return nil, err
	}
	rep := &Report{Context: o.Context, Namespace: o.TestNamespace, Started: time.Now().UTC()}
	start := time.Now()
	var chosen []Scenario
	for _, s := range all {
		if filter.Match(s) {
			chosen = append(chosen, s)
		}
	}
	if len(chosen) == 0 {
		return nil, errors.New("--test leaves no scenario to run")
	}
	e, err := discover(ctx, o)
	if err != nil {
		return nil, err
	}
	err = e.run(ctx, rep, chosen)
	rep.finish(time.Since(start))
	if err == nil && rep.Code != 0 {
		err = ErrFailed
	}
	return rep, err
}

// Namespaces lists the namespaces that connectivity tests have made with a base name (the option
// --test-namespace): the name itself, or with a number behind it.
func Namespaces(ctx context.Context, c kubernetes.Interface, base string) ([]string, error) {
	l, err := c.CoreV1().Namespaces().List(ctx, metav1.ListOptions{LabelSelector: managedLabel + "=" + managedValue})
	if err != nil {
		return nil, fmt.Errorf("list namespaces of connectivity tests: %w", err)
	}
	var out []string
	for i := range l.Items {
		number, ok := strings.CutPrefix(l.Items[i].Name, base+"-")
		if l.Items[i].Name == base || ok && number != "" && strings.Trim(number, "0123456789") == "" {
			out = append(out, l.Items[i].Name)
		}
	}
	return out, nil
}

// Clean removes what a run that was killed left behind.
func Clean(ctx context.Context, o Options) error {
	o.fill()
	return (&Env{opts: o}).removeNamespace(ctx)
}

func (e *Env) run(ctx context.Context, rep *Report, chosen []Scenario) (err error) {
	// Only a namespace that this run has made is removed at its end.
	if err := e.makeNamespace(ctx); err != nil {
		return err
	}
	defer func() {
		if e.opts.Keep {
			return
		}
		cctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanLimit)
		defer cancel()
		done := e.opts.Progress.Step("Removing namespace %s", e.opts.TestNamespace)
		cerr := e.removeNamespace(cctx)
		done(cerr)
		err = errors.Join(err, cerr)
	}()
	if stop := e.startOutside(ctx); stop != nil {
		defer stop()
	}
	done := e.opts.Progress.Step("Deploying the test pods into namespace %s", e.opts.TestNamespace)
	if err := e.deploy(ctx); err != nil {
		done(err)
		return err
	}
	if err := e.findServices(ctx); err != nil {
		done(err)
		return err
	}
	done(nil)

	sctx, cancel := context.WithCancel(ctx)
	e.sessions = newSessions(sctx, &e.opts, e.external)
	e.watch = watchDrops(sctx, e)
	defer func() {
		e.sessions.close()
		e.watch.stop()
		cancel()
	}()
	done = e.opts.Progress.Step("Waiting until every node knows the Services")
	if err := e.waitServices(ctx); err != nil {
		done(err)
		return err
	}
	e.drops = e.readDrops(ctx)
	done(nil)
	e.opts.Progress.Debug("Clients %v, servers %v, families %v", e.Clients, e.Echoes, e.Families)
	e.runTests(ctx, rep, chosen)
	if err := ctx.Err(); err != nil {
		return err
	}
	e.explain(ctx, rep)
	return nil
}

// startOutside starts the server outside the cluster, when there is such a place.
func (e *Env) startOutside(ctx context.Context) func() {
	if e.opts.External == nil {
		return nil
	}
	x, err := e.opts.External(ctx, httpPort, tcpPort, udpPort)
	if err != nil {
		e.opts.Progress.Info("No server outside the cluster: %v", err)
		return nil
	}
	p := Peer{Kind: PeerExternal, Name: "external", IPs: parseAddrs(x.Addresses)}
	if x.Exec != nil {
		p.Pod = outsidePod
	}
	e.Outside, e.external = &p, x
	return x.Stop
}

// runTests runs every scenario, the last ones after the others, and reports tests in order.
func (e *Env) runTests(ctx context.Context, rep *Report, chosen []Scenario) {
	names := testNames(chosen)
	results := make([]ScenarioResult, len(chosen))
	finished := make([]chan struct{}, len(chosen))
	for i := range finished {
		finished[i] = make(chan struct{})
	}
	lim := newLimiter(e.opts.Concurrency)
	var first, last sync.WaitGroup
	for i, s := range chosen {
		wg := &first
		if s.Last {
			wg = &last
		}
		wg.Go(func() {
			defer close(finished[i])
			if s.Last {
				first.Wait()
			}
			results[i] = e.runScenario(ctx, s, lim)
		})
	}
	for n, name := range names {
		t := TestResult{Name: name, OK: true, Skipped: true}
		for i, s := range chosen {
			if s.Test != name {
				continue
			}
			<-finished[i]
			r := results[i]
			t.Scenarios = append(t.Scenarios, r)
			t.OK = t.OK && (r.OK || r.Skipped != "")
			t.Skipped = t.Skipped && r.Skipped != ""
		}
		rep.Tests = append(rep.Tests, t)
		e.opts.Progress.TestDone(t, n+1, len(names))
		if !t.OK && e.opts.Pause != nil && ctx.Err() == nil {
			e.opts.Pause(ctx, t)
		}
	}
	first.Wait()
	last.Wait()
}

func (e *Env) runScenario(ctx context.Context, s Scenario, lim *limiter) ScenarioResult {
	r := ScenarioResult{Name: s.Name}
	if s.Skip != nil {
		if r.Skipped = s.Skip(e); r.Skipped != "" {
			return r
		}
	}
	start := time.Now()
	if s.Prepare != nil {
		if err := s.Prepare(ctx, e); err != nil {
			r.Actions = []ActionResult{done(s.Name+": prepare", "%v", err)}
			return r
		}
	}
	if s.Do != nil {
		r.Actions = s.Do(ctx, e)
	} else {
		actions := s.Actions(e)
		r.Actions = make([]ActionResult, len(actions))
		var wg sync.WaitGroup
		for i := range actions {
			wg.Go(func() { r.Actions[i] = e.runAction(ctx, &actions[i], lim) })
		}
		wg.Wait()
	}
	r.Seconds = time.Since(start).Seconds()
	r.OK = !slices.ContainsFunc(r.Actions, func(a ActionResult) bool { return !a.OK })
	return r
}

// silenceLimit is how long no answer is waited for where none may come.
const silenceLimit = 2 * time.Second

func (e *Env) runAction(ctx context.Context, a *Action, lim *limiter) ActionResult {
	r := ActionResult{Name: a.Name(), action: a}
	release := lim.acquire(a)
	defer release()
	p := a.Probe
	p.TimeoutMillis = e.timeoutMillis()
	if a.Expect.Kind == probe.KindTimeout {
		p.TimeoutMillis = min(p.TimeoutMillis, int(silenceLimit/time.Millisecond))
	}
	r.from = time.Now()
	res, err := e.sessions.do(ctx, a.From.Pod, p)
	r.to = time.Now()
	if err != nil {
		r.Problem, r.broken = err.Error(), true
		return r
	}
	r.Result = &res
	r.Problem = a.Expect.judge(res)
	r.OK = r.Problem == ""
	e.opts.Progress.Debug("%s: ok %t in %d µs, %d segments sent again", r.Name, r.OK, res.TookMicros, res.Retransmits)
	return r
}

// limiter bounds the number of actions at a time. Large datagrams go to a target one by one: several
// of them would overflow the receive buffer of one socket, which is no fault of the network.
type limiter struct {
	slots chan struct{}
	mu    sync.Mutex
	large map[string]*sync.Mutex
}

const largeDatagram = 4000

func newLimiter(n int) *limiter {
	return &limiter{slots: make(chan struct{}, n), large: map[string]*sync.Mutex{}}
}

func (l *limiter) acquire(a *Action) (release func()) {
	var m *sync.Mutex
	if (a.Probe.Proto == probe.UDP || a.Probe.Proto == probe.ICMP) && a.Probe.Size >= largeDatagram {
		key := a.To.String()
		l.mu.Lock()
		if m = l.large[key]; m == nil {
			m = &sync.Mutex{}
			l.large[key] = m
		}
		l.mu.Unlock()
		m.Lock()
	}
	l.slots <- struct{}{}
	return func() {
		<-l.slots
		if m != nil {
			m.Unlock()
		}
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// done makes a finished result for a scenario that does not probe.
func done(name, problem string, args ...any) ActionResult {
	return ActionResult{Name: name, OK: problem == "", Problem: fmt.Sprintf(problem, args...)}
}
