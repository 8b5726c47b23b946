// SPDX-License-Identifier: Apache-2.0

package check

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"

	"lash.internal/lash/connectivity/probe"
)

// session is one exec into a pod: probes go in, results come out in the order they finish.
type session struct {
	pod     string
	in      *io.PipeWriter
	writing sync.Mutex // guards enc; never held together with mu, or a slow reader of results would stop them all
	enc     *json.Encoder
	mu      sync.Mutex // guards next and waiting
	next    int
	waiting map[string]chan probe.Result
	err     error // set before done is closed
	done    chan struct{}
}

// sessions holds one session a source pod, opened when it is first needed.
type sessions struct {
	ctx     context.Context //nolint:containedctx // the life of the execs, longer than any one call
	opts    *Options
	outside *External
	mu      sync.Mutex
	open    map[string]*session
}

// outsidePod stands for the host outside the cluster where sources are named by their pod; no pod
// can have this name.
const outsidePod = "(external)"

func newSessions(ctx context.Context, o *Options, outside *External) *sessions {
	return &sessions{ctx: ctx, opts: o, outside: outside, open: map[string]*session{}}
}

// exec runs the probe command at a source.
func (s *sessions) exec(pod string, streams Streams) error {
	if pod == outsidePod {
		return s.outside.Exec(s.ctx, streams, "--batch")
	}
	return s.opts.Exec(s.ctx, s.opts.TestNamespace, pod, "echo", streams, agentBinary, "probe", "--batch")
}

// do runs a probe in a pod. An error means that the exec broke, not that the probe failed.
func (s *sessions) do(ctx context.Context, pod string, p probe.Probe) (probe.Result, error) {
	s.mu.Lock()
	c := s.open[pod]
	if c == nil {
		c = s.start(pod)
		s.open[pod] = c
	}
	s.mu.Unlock()
	return c.do(ctx, p)
}

func (s *sessions) start(pod string) *session {
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	c := &session{pod: pod, in: inW, enc: json.NewEncoder(inW), waiting: map[string]chan probe.Result{}, done: make(chan struct{})}
	var stderr bytes.Buffer
	ended := make(chan error, 1)
	go func() {
		err := s.exec(pod, Streams{In: inR, Out: outW, Err: &stderr})
		_ = inR.CloseWithError(io.ErrClosedPipe)
		_ = outW.Close()
		ended <- err
	}()
	go func() {
		c.read(outR)
		_ = outR.Close()
		err := <-ended
		c.err = fmt.Errorf("the exec into pod %s ended: %s", pod, strings.TrimSpace(fmt.Sprintf("%v %s", errOr(err, "without an error"), stderr.String())))
		close(c.done)
	}()
	return c
}

func errOr(err error, text string) string {
	if err == nil {
		return text
	}
	return err.Error()
}

// read hands out results until the stream ends.
func (c *session) read(r io.Reader) {
	dec := json.NewDecoder(r)
	for {
		var res probe.Result
		if dec.Decode(&res) != nil {
			return
		}
		c.mu.Lock()
		ch := c.waiting[res.ID]
		delete(c.waiting, res.ID)
		c.mu.Unlock()
		if ch != nil {
			ch <- res
		}
	}
}

func (c *session) do(ctx context.Context, p probe.Probe) (probe.Result, error) {
	ch := make(chan probe.Result, 1)
	c.mu.Lock()
	c.next++
	p.ID = strconv.Itoa(c.next)
	c.waiting[p.ID] = ch
	c.mu.Unlock()
	c.writing.Lock()
	err := c.enc.Encode(p)
	c.writing.Unlock()
	if err != nil {
		<-c.done
		return probe.Result{}, c.err
	}
	select {
	case res := <-ch:
		return res, nil
	case <-c.done:
		return probe.Result{}, c.err
	case <-ctx.Done():
		return probe.Result{}, ctx.Err()
	}
}

// close ends the sessions and waits for them.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.open {
		_ = c.in.Close()
	}
	for _, c := range s.open {
		select {
		case <-c.done:
		case <-s.ctx.Done():
			<-c.done
		}
	}
	s.open = map[string]*session{}
}

var errNoAgent = errors.New("no agent is ready there")

// inAgent runs an in-pod command in the agent of a node and returns what it printed.
func (e *Env) inAgent(ctx context.Context, node string, command ...string) (string, error) {
	n := e.node(node)
	if n == nil || !n.Ready() {
		return "", errNoAgent
	}
	var out, errOut bytes.Buffer
	err := e.opts.Exec(ctx, e.opts.Namespace, n.Agent.Name, "cilium-agent", Streams{Out: &out, Err: &errOut}, command...)
	if err != nil && errOut.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), err
}
