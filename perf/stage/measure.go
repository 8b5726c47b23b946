// SPDX-License-Identifier: Apache-2.0

package stage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"lash.internal/lash/perf/netperf"
)

// Source is a place to measure from. Its Run takes the arguments of a program that has the commands
// `perf client` and `probe`.
type Source struct {
	Name string
	Run  func(ctx context.Context, args ...string) ([]byte, error)
}

// From is a pod as a source.
func (s *Stage) From(p *Pod) *Source {
	return &Source{Name: p.Name, Run: func(ctx context.Context, args ...string) ([]byte, error) {
		var out, errOut bytes.Buffer
		err := s.o.Exec(ctx, p.Namespace, p.Pod, container, &out, &errOut, append([]string{agentBinary}, args...)...)
		if err != nil && errOut.Len() > 0 {
			err = errors.New(strings.TrimPrefix(strings.TrimSpace(errOut.String()), "Error: "))
		}
		return out.Bytes(), err
	}}
}

// Target is a place to measure to: where the control connection goes, and, through a Service, which data
// ports the server shall use and under which numbers the client finds them.
type Target struct {
	Control netip.AddrPort
	Data    uint16
	Connect func(test netperf.Test, streams int) []uint16
}

// ToPod is a server by the address of its pod; on the hosts' network that is its node's.
func ToPod(p *Pod, family int) Target {
	port := uint16(netperf.DefaultPort)
	if p.Name == HostLocal || p.Name == HostOther {
		port = hostPort
	}
	return Target{Control: netip.AddrPortFrom(p.IP(family), port)}
}

// same are the data ports under their own numbers.
func same(_ netperf.Test, streams int) []uint16 {
	var out []uint16
	for i := range streams {
		out = append(out, uint16(dataPort+i))
	}
	return out
}

// ToClusterIP is a Service by its cluster IP.
func (v *Service) ToClusterIP(family int) Target {
	return Target{Control: netip.AddrPortFrom(pick(v.ClusterIPs, family), netperf.DefaultPort), Data: dataPort, Connect: same}
}

// ToIngress is a Service by the address of its load balancer.
func (v *Service) ToIngress(family int) Target {
	return Target{Control: netip.AddrPortFrom(pick(v.Ingress, family), netperf.DefaultPort), Data: dataPort, Connect: same}
}

// ToNodePort is a Service by its ports on a node.
func (v *Service) ToNodePort(n Node, family int) Target {
	return Target{
		Control: netip.AddrPortFrom(n.IP(family), v.nodePorts["control"]), Data: dataPort,
		Connect: func(test netperf.Test, streams int) []uint16 {
			proto := "tcp"
			if test.Datagrams() {
				proto = "udp"
			}
			var out []uint16
			for i := range streams {
				out = append(out, v.nodePorts[fmt.Sprintf("data-%s-%d", proto, i)])
			}
			return out
		},
	}
}

// Valid says whether the target has an address: there may be none of a family.
func (t Target) Valid() bool { return t.Control.Addr().IsValid() && t.Control.Port() != 0 }

// Test is what to measure.
type Test struct {
	Test    netperf.Test
	Streams int // 0 is 1
	// MessageSize is the bytes of a call that sends in a one-way test; 0 is the socket's send buffer.
	MessageSize int
	Rate        float64
}

// settle is the pause between the start of a client and its test: starting a process in a pod takes many
// others, which must not run beside the test. It is also when noise is looked for.
const settle = 300 * time.Millisecond

// Measure takes a sample.
func (s *Stage) Measure(ctx context.Context, from *Source, to Target, t Test, length time.Duration) (netperf.Result, error) {
	streams := max(t.Streams, 1)
	args := []string{
		"perf", "client", to.Control.String(), "--test", string(t.Test), "--length", length.String(), "--settle", settle.String(),
		"--passphrase", s.passphrase, "--output", "json", "--streams", strconv.Itoa(streams),
	}
	if to.Data != 0 {
		args = append(args, "--data-port", strconv.Itoa(int(to.Data)))
		for _, p := range to.Connect(t.Test, streams) {
			args = append(args, "--connect-port", strconv.Itoa(int(p)))
		}
	}
	if t.MessageSize > 0 && !t.Test.Transactions() {
		args = append(args, "--send-size", strconv.Itoa(t.MessageSize))
	}
	if t.Rate > 0 && t.Test.Transactions() {
		args = append(args, "--rate", strconv.FormatFloat(t.Rate, 'f', -1, 64))
	}
	var r netperf.Result
	out, err := from.Run(ctx, args...)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return r, fmt.Errorf("the client prints no result: %w", err)
	}
	return r, nil
}

// Await returns when targets take TCP connections from a source, or with the reason when they do not within
// the limit.
func Await(ctx context.Context, from *Source, limit time.Duration, to ...netip.AddrPort) error {
	args := []string{"perf", "wait", "--timeout", limit.String()}
	for _, a := range to {
		args = append(args, a.String())
	}
	if _, err := from.Run(ctx, args...); err != nil {
		return errors.Join(fmt.Errorf("from %s: %w", from.Name, err), ctx.Err())
	}
	return nil
}
