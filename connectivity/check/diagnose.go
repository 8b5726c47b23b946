// SPDX-License-Identifier: Apache-2.0

package check

import (
	"fmt"
	"slices"
	"strings"
)

// maxSentences bounds the diagnosis: the first sentences are the likeliest causes.
const maxSentences = 6

// line is one stretch between two nodes in one family.
type line struct {
	path     PathKind
	from, to string
	family   int
}

// tally counts the actions of a line; small ones fit into any packet.
type tally struct{ ok, failed, smallOK, smallFailed int }

// diagnosis compares what works with what does not.
type diagnosis struct {
	e     *Env
	lines map[line]*tally
	out   []string
}

// smallPayload is what no tunnel and no MTU cuts.
const smallPayload = 1000

// diagnose makes sentences of the failures: causes that the evidence shows first, then what the
// pattern of successes and failures suggests.
func (e *Env) diagnose(rep *Report) []string {
	d := &diagnosis{e: e, lines: map[line]*tally{}}
	var failed []*ActionResult
	for t := range rep.Tests {
		for s := range rep.Tests[t].Scenarios {
			actions := rep.Tests[t].Scenarios[s].Actions
			for i := range actions {
				d.add(&actions[i])
				if !actions[i].OK {
					failed = append(failed, &actions[i])
				}
			}
		}
	}
	for _, f := range failed {
		if f.action == nil {
			d.say("%s: %s.", f.Name, strings.TrimSuffix(f.Problem, "."))
		}
		if f.broken {
			d.say("%s could not be tried: %s.", f.Name, f.Problem)
		}
	}
	d.fabric()
	for _, f := range failed {
		if f.action != nil && !f.broken && len(f.Evidence) > 0 {
			d.facts(f)
		}
	}
	for _, f := range failed {
		if f.action != nil && !f.broken {
			d.pattern(f)
		}
	}
	if len(d.out) > maxSentences {
		d.out = append(d.out[:maxSentences], fmt.Sprintf("%d further findings are in the report (-o json).", len(d.out)-maxSentences))
	}
	return d.out
}

func (d *diagnosis) say(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	if !slices.Contains(d.out, s) {
		d.out = append(d.out, s)
	}
}

func (d *diagnosis) lineOf(a *Action) line {
	return line{a.Path, a.From.Node, a.To.Node, a.Family}
}

func (d *diagnosis) add(r *ActionResult) {
	if r.action == nil {
		return
	}
	l := d.lineOf(r.action)
	t := d.lines[l]
	if t == nil {
		t = &tally{}
		d.lines[l] = t
	}
	small := !r.action.Probe.FromMTU && r.action.Probe.Size <= smallPayload
	switch {
	case r.OK && small:
		t.ok++
		t.smallOK++
	case r.OK:
		t.ok++
	case small:
		t.failed++
		t.smallFailed++
	default:
		t.failed++
	}
}

// all says whether every small action of a line failed, or passed.
func (d *diagnosis) dead(l line) bool {
	t := d.lines[l]
	return t != nil && t.smallFailed > 0 && t.smallOK == 0
}

func (d *diagnosis) alive(l line) bool {
	t := d.lines[l]
	return t != nil && t.failed == 0 && t.ok > 0
}

// fabric names pairs of nodes that do not reach each other at all.
func (d *diagnosis) fabric() {
	for _, a := range d.e.Nodes {
		for _, b := range d.e.Nodes {
			for _, f := range d.e.Families {
				if d.dead(line{PathNodeToNode, a.Name, b.Name, f}) {
					d.say("Node %s does not reach node %s over IPv%d, without any pod in between: the network between the nodes (or a firewall on them) is broken, not the pod network.", a.Name, b.Name, f)
				}
			}
		}
	}
}

// facts names what the evidence of one failure shows.
func (d *diagnosis) facts(r *ActionResult) {
	a, f := r.action, &r.facts
	is := func(b *bool) bool { return b != nil && *b }
	no := func(b *bool) bool { return b != nil && !*b }
	to := a.To
	if a.To.Kind == PeerService {
		for _, p := range append(append([]Peer{}, d.e.Echoes...), d.e.Clients...) {
			if p.Name == a.To.Name {
				to = p
			}
		}
	}
	switch {
	case no(f.srcLocal):
		d.say("Node %s does not know its own pod %s (%s): the entry in the map of local endpoints is missing, so what the pod sends is dropped.", a.From.Node, a.From.Name, a.From.IP(a.Family))
	case no(f.dstLocal):
		d.say("Node %s does not know its own pod %s (%s): the entry in the map of local endpoints is missing, so nothing is delivered to it.", to.Node, to.Name, to.IP(a.Family))
	case no(f.frontend) && a.Path != PathRejected:
		d.say("Node %s does not know Service %s (%s): the entry in the service map is missing.", a.From.Node, a.To.Name, a.To.IP(a.Family))
	case no(f.dstKnown) && to.Node != "":
		d.say("Node %s does not know the address %s of %s: the entry in the address map is missing.", a.From.Node, to.IP(a.Family), to.Name)
	case no(f.srcKnown):
		d.say("Node %s does not know the address %s of %s: the entry in the address map is missing.", to.Node, a.From.IP(a.Family), a.From.Name)
	case d.routeMissing(r, to):
		d.say("Node %s has no route through the tunnel to %s on node %s: it would take %q.", a.From.Node, to.IP(a.Family), to.Node, *f.route)
	}
	if len(f.drops) > 0 {
		d.say("Node %s drops packets between %s and %s: %s.", f.drops[0].node, a.From, a.To, f.drops[0].event.Reason)
	}
	if d.crossesNodes(a, to) && is(f.reached) && d.dead(d.lineOf(a)) {
		d.say("Packets of %s arrive on node %s, the answers do not come back to node %s.", a.From.Name, to.Node, a.From.Node)
	}
}

func (d *diagnosis) crossesNodes(a *Action, to Peer) bool {
	return to.Kind == PeerPod && to.Node != "" && to.Node != a.From.Node
}

// routeMissing says whether the node's route to a pod elsewhere leads somewhere else than the tunnel.
// That to a Service's own address says nothing.
func (d *diagnosis) routeMissing(r *ActionResult, to Peer) bool {
	if r.facts.route == nil || r.action.To.Kind == PeerService || !d.crossesNodes(r.action, to) || d.e.Config["routing-mode"] == "native" {
		return false
	}
	return !strings.Contains(*r.facts.route, "dev cilium_")
}

// pattern names what the successes beside a failure suggest.
func (d *diagnosis) pattern(r *ActionResult) {
	a := r.action
	l := d.lineOf(a)
	t := d.lines[l]
	port := d.e.Config["tunnel-port"]
	if port == "" {
		port = "8472"
	}
	fabric := line{PathNodeToNode, a.From.Node, a.To.Node, a.Family}
	switch {
	case (a.Path == PathOtherNode || a.Path == PathRemoteToPod) && d.dead(l) && !d.dead(fabric):
		from, to := a.From.Node, a.To.Node
		if from > to {
			from, to = to, from
		}
		d.say("Nothing passes the tunnel between %s and %s (IPv%d pods), while the nodes reach each other directly: check that UDP port %s is open between them, and the route and the cilium_vxlan device on both.", from, to, a.Family, port)
	case t != nil && t.smallFailed == 0 && t.smallOK > 0:
		d.say("%s over IPv%d from %s to %s: small packets pass, large ones (%s) do not: look at the MTU of the way and at the handling of fragments.", title(a.Path), a.Family, a.From, a.To, size(r))
	case (a.Path == PathService || a.Path == PathHostService || a.Path == PathLoopback) && d.podsWork(a):
		d.say("Pods answer under their own addresses, but not through Service %s from %s over IPv%d: the translation of Services on node %s is broken.", a.To.Name, a.From, a.Family, a.From.Node)
	case a.Path == PathRejected:
		d.say("Service %s has no endpoints, but %s was not refused at once over IPv%d (%s): %s.", a.To.Name, a.From, a.Family, a.Probe.Proto, r.Problem)
	case a.Path == PathDNS:
		d.say("The cluster's DNS does not answer %s over IPv%d as it should: %s.", a.From, a.Family, r.Problem)
	case a.Path == PathExternal:
		d.say("%s does not reach %s outside the cluster over IPv%d: look at masquerading and at the routes of node %s (%s).", a.From, a.To, a.Family, a.From.Node, r.Problem)
	default:
		d.say("%s is broken: %s to %s over IPv%d (%s).", title(a.Path), a.From, a.To, a.Family, r.Problem)
	}
}

// podsWork says whether the client reaches the server of a Service under its own address.
func (d *diagnosis) podsWork(a *Action) bool {
	for _, p := range d.e.Echoes {
		if p.Name != a.To.Name {
			continue
		}
		path := podPath(a.From, p)
		if a.From.Kind == PeerHost {
			path = PathHostToPod
			if a.From.Node != p.Node {
				path = PathRemoteToPod
			}
		}
		return d.alive(line{path, a.From.Node, p.Node, a.Family})
	}
	return a.Path == PathLoopback
}

func size(r *ActionResult) string {
	if r.Result != nil && r.Result.Size > 0 {
		return fmt.Sprintf("%s %d bytes", r.action.Probe.Proto, r.Result.Size)
	}
	return string(r.action.Probe.Proto)
}

func title(p PathKind) string {
	if p == PathNone {
		return "A path"
	}
	return strings.ToUpper(string(p[:1])) + string(p[1:])
}
