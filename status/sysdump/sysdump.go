// SPDX-License-Identifier: Apache-2.0

// Package sysdump puts what somebody needs who has to find out from afar why a network does not
// work into one zip file: objects, logs, what each agent says, what each node's kernel holds.
//
//	tasks in order of interest --workers--> redaction --> archive
//
// Time and size have a budget: what comes first is what is most likely to matter, nodes that are
// sick before those that are well. What could not be collected, and what there was no room or no
// time for, is listed in the file itself. Secrets do not leave the cluster.
package sysdump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"lash.internal/lash/status"
)

// Options say what to collect and how much of it.
type Options struct {
	Client    kubernetes.Interface
	Dynamic   dynamic.Interface
	Exec      status.Exec
	Context   string // name of the kubeconfig context, for the summary
	Namespace string
	Release   string // Helm release
	Version   string // of the program that collects

	MaxTime time.Duration // of the whole
	MaxSize int64         // of the file, in bytes
	Workers int

	Nodes     []string      // only these; empty: all
	Quick     bool          // leave out what is large: map entries, former logs, objects of users
	LogsSince time.Duration // how far back logs go
	LogLines  int64         // most lines of one log
	LogBytes  int64         // most bytes of one log
	Selectors []string      // pods of others whose logs to take, by label

	// Say hears of each file; it may be nil.
	Say func(done, all int, file string)
	Now func() time.Time
}

// Result says how it went.
type Result struct {
	Files   int
	Size    int64
	Failed  []Missing // could not be collected
	Skipped []Missing // no time or no room
	// Redacted counts what was taken out, by kind.
	Redacted map[string]int
	// Nodes in the order in which they were looked at, the sick ones first with what is wrong.
	Nodes []Node
}

// Missing is a file that is not in the archive.
type Missing struct{ File, Why string }

// Node is a node and what makes it interesting; an empty Sick is a node that is well.
type Node struct {
	Name string
	Sick string
}

// Reasons for leaving something out.
var (
	errNoTime = errors.New("no time left (--max-time)")
	errNoRoom = errors.New("no room left (--max-size)")
)

// task makes one file.
type task struct {
	file  string
	limit time.Duration
	run   func(ctx context.Context) ([]byte, error)
}

// closing is the time that is kept for writing the summary and closing the file.
const closing = time.Second

// Run collects into w. What was collected is in the file, whatever happens: the error is that of a
// file that could not be written, or of a cluster that could not be asked at all, in which case
// nothing is written.
func Run(ctx context.Context, w io.Writer, o Options) (*Result, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	start := o.Now()
	r := &run{Options: o, red: newRedactor(), out: &Result{}}
	limited, cancel := context.WithTimeout(ctx, max(o.MaxTime-closing, time.Second))
	defer cancel()
	if err := r.look(limited); err != nil {
		return nil, err
	}
	r.archive = newArchive(w, o.MaxSize, start)
	r.tasks()
	r.work(ctx, limited)
	r.out.Redacted = r.red.counts()
	slices.SortFunc(r.out.Failed, byFile)
	slices.SortFunc(r.out.Skipped, byFile)
	err := errors.Join(r.archive.summary("summary.txt", r.summary(start)), r.archive.close())
	r.out.Files, r.out.Size = r.archive.files, r.archive.size
	return r.out, err
}

func byFile(a, b Missing) int { return strings.Compare(a.File, b.File) }

// run is the state of one collection.
type run struct {
	Options
	archive *archive
	red     *redactor
	nodes   []corev1.Node
	pods    []corev1.Pod // of the namespace
	list    []task

	mu  sync.Mutex
	out *Result
}

// look lists the nodes and our pods, on which everything else depends.
func (r *run) look(ctx context.Context) error {
	nodes, pods, err := r.lists(ctx)
	if err != nil {
		return err
	}
	r.nodes, r.pods = nodes, pods
	r.out.Nodes = r.order()
	return nil
}

func (r *run) add(file string, f func(ctx context.Context) ([]byte, error)) {
	r.list = append(r.list, task{file: file, limit: 15 * time.Second, run: f})
}

// work runs the tasks in their order, some at a time, until the time is up.
func (r *run) work(ctx, limited context.Context) {
	queue := make(chan int)
	var wg sync.WaitGroup
	done := 0
	for range max(r.Workers, 1) {
		wg.Go(func() {
			for i := range queue {
				t := r.list[i]
				err := r.do(limited, t)
				r.mu.Lock()
				done++
				r.note(ctx, limited, t.file, err)
				if r.Say != nil {
					r.Say(done, len(r.list), t.file)
				}
				r.mu.Unlock()
			}
		})
	}
	for i := range r.list {
		select {
		case queue <- i:
			continue
		case <-limited.Done():
		}
		r.mu.Lock()
		for _, t := range r.list[i:] {
			r.note(ctx, limited, t.file, errNoTime)
		}
		r.mu.Unlock()
		break
	}
	close(queue)
	wg.Wait()
}

// note files an error under what it means.
func (r *run) note(ctx, limited context.Context, file string, err error) {
	switch {
	case err == nil:
	case ctx.Err() != nil:
		r.out.Skipped = append(r.out.Skipped, Missing{file, "interrupted"})
	case limited.Err() != nil, errors.Is(err, errNoTime):
		r.out.Skipped = append(r.out.Skipped, Missing{file, errNoTime.Error()})
	case errors.Is(err, errNoRoom):
		r.out.Skipped = append(r.out.Skipped, Missing{file, errNoRoom.Error()})
	default:
		r.out.Failed = append(r.out.Failed, Missing{file, err.Error()})
	}
}

// do collects one file. What a command has printed counts, even if it says by its exit code that
// something is wrong: then both are there, the file and the failure.
func (r *run) do(ctx context.Context, t task) error {
	if ctx.Err() != nil {
		return errNoTime
	}
	c, cancel := context.WithTimeout(ctx, t.limit)
	defer cancel()
	data, err := t.run(c)
	if err != nil && c.Err() != nil && ctx.Err() == nil {
		err = fmt.Errorf("no answer within %s", t.limit)
	}
	if len(data) == 0 {
		return err
	}
	return errors.Join(err, r.archive.add(t.file, r.red.text(data)))
}

// order sorts the nodes: those with something wrong first.
func (r *run) order() []Node {
	agents := map[string]*corev1.Pod{}
	for i := range r.pods {
		if p := &r.pods[i]; p.Labels["k8s-app"] == "cilium" {
			agents[p.Spec.NodeName] = p
		}
	}
	var out []Node
	for i := range r.nodes {
		n := &r.nodes[i]
		if len(r.Options.Nodes) > 0 && !slices.Contains(r.Options.Nodes, n.Name) {
			continue
		}
		out = append(out, Node{n.Name, sickness(n, agents[n.Name])})
	}
	slices.SortStableFunc(out, func(a, b Node) int {
		switch {
		case (a.Sick == "") != (b.Sick == "") && a.Sick != "":
			return -1
		case (a.Sick == "") != (b.Sick == ""):
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out
}

// sickness is what is wrong with a node or its agent; empty when nothing is.
func sickness(n *corev1.Node, agent *corev1.Pod) string {
	var words []string
	switch {
	case agent == nil:
		words = append(words, "no agent")
	case agent.Status.Phase != corev1.PodRunning:
		words = append(words, "agent is "+string(agent.Status.Phase))
	default:
		ready := slices.ContainsFunc(agent.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		})
		if !ready {
			words = append(words, "agent is not ready")
		}
	}
	if agent != nil {
		for _, c := range agent.Status.ContainerStatuses {
			if c.RestartCount > 0 {
				words = append(words, fmt.Sprintf("%d restarts of %s", c.RestartCount, c.Name))
			}
		}
	}
	for _, c := range n.Status.Conditions {
		bad := c.Status == corev1.ConditionTrue
		if c.Type == corev1.NodeReady {
			bad = c.Status != corev1.ConditionTrue
		}
		if bad {
			words = append(words, fmt.Sprintf("%s is %s", c.Type, c.Status))
		}
	}
	return strings.Join(words, ", ")
}

// summary is the text that says what is in the file and what is not.
func (r *run) summary(start time.Time) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "Sysdump of context %s, namespace %s\n", r.Context, r.Namespace)
	fmt.Fprintf(&b, "Taken %s in %s by lash %s\n", start.UTC().Format(time.RFC3339), r.Now().Sub(start).Round(time.Millisecond), r.Version)
	fmt.Fprintf(&b, "Budget: %s, %d bytes\n", r.MaxTime, r.MaxSize)
	fmt.Fprintf(&b, "\nCollected: %d files\n", r.archive.files)
	list := func(title string, all []Missing) {
		fmt.Fprintf(&b, "\n%s: %d\n", title, len(all))
		for _, m := range all {
			fmt.Fprintf(&b, "  %s: %s\n", m.File, strings.ReplaceAll(strings.TrimSpace(m.Why), "\n", "; "))
		}
	}
	list("Could not be collected", r.out.Failed)
	list("Left out", r.out.Skipped)
	fmt.Fprintf(&b, "\nNodes, in the order of interest: %d\n", len(r.out.Nodes))
	for _, n := range r.out.Nodes {
		state := n.Sick
		if state == "" {
			state = "well"
		}
		fmt.Fprintf(&b, "  %s: %s\n", n.Name, state)
	}
	fmt.Fprintf(&b, "\nRedacted:\n")
	for _, k := range slices.Sorted(keys(r.out.Redacted)) {
		fmt.Fprintf(&b, "  %s: %d\n", k, r.out.Redacted[k])
	}
	return []byte(b.String())
}
