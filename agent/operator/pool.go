// SPDX-License-Identifier: Apache-2.0

package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"lash.internal/lash/agent/kube/ciliumio"
)

// pool gives every CiliumNode a pod CIDR of each family. What nodes have is read from their
// objects, so that a new leader knows it all.
type pool struct {
	o        *Operator
	v        *view
	families []*subnets
}

func newPool(o *Operator, v *view) (*pool, error) {
	p := &pool{o: o, v: v}
	for _, f := range []struct {
		on   bool
		cidr []netip.Prefix
		mask int
	}{{o.cfg.IPv4, o.cfg.PoolIPv4, o.cfg.PoolMaskV4}, {o.cfg.IPv6, o.cfg.PoolIPv6, o.cfg.PoolMaskV6}} {
		if !f.on {
			continue
		}
		s, err := newSubnets(f.cidr, f.mask)
		if err != nil {
			return nil, fmt.Errorf("cluster pool: %w", err)
		}
		p.families = append(p.families, s)
	}
	return p, nil
}

func (p *pool) run(ctx context.Context) {
	p.o.loop(ctx, "cluster pool", time.Minute, p.v.subscribe(kindCiliumNode), p.pass)
}

// pass compares all nodes with the pool. Nodes that have a CIDR come first, so that nobody else
// is given it, and of those the oldest.
func (p *pool) pass(ctx context.Context) error {
	var nodes []*ciliumio.Node
	for _, obj := range p.v.ciliums.List() {
		n := &ciliumio.Node{}
		if err := ciliumio.FromUnstructured(obj, n); err != nil {
			return err
		}
		nodes = append(nodes, n)
	}
	slices.SortFunc(nodes, func(a, b *ciliumio.Node) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	p.forgetMissing(nodes)
	problems := map[string]error{}
	for _, n := range nodes {
		for _, c := range n.Spec.IPAM.PodCIDRs {
			prefix, err := netip.ParsePrefix(c)
			if err == nil {
				if s := p.family(prefix); s != nil {
					err = s.occupy(n.Name, prefix)
				}
			}
			if err != nil {
				problems[n.Name] = errors.Join(problems[n.Name], err)
			}
		}
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, p.settle(ctx, n, problems[n.Name]))
	}
	return errors.Join(errs...)
}

func (p *pool) family(prefix netip.Prefix) *subnets {
	for _, s := range p.families {
		if s.parents[0].Addr().Is4() == prefix.Addr().Is4() {
			return s
		}
	}
	return nil
}

func (p *pool) forgetMissing(nodes []*ciliumio.Node) {
	for _, s := range p.families {
		for _, who := range s.owner {
			if !slices.ContainsFunc(nodes, func(n *ciliumio.Node) bool { return n.Name == who }) {
				s.release(who)
			}
		}
	}
}

// settle gives a node what it lacks and reports a problem in its status.
func (p *pool) settle(ctx context.Context, n *ciliumio.Node, problem error) error {
	next := *n
	next.Spec.IPAM.PodCIDRs = slices.Clone(n.Spec.IPAM.PodCIDRs)
	for _, s := range p.families {
		v4 := s.parents[0].Addr().Is4()
		if slices.ContainsFunc(next.Spec.IPAM.PodCIDRs, func(c string) bool {
			q, err := netip.ParsePrefix(c)
			return err == nil && q.Addr().Is4() == v4
		}) {
			continue
		}
		// A subnet that is the node's already was given in a pass whose write failed.
		if mine := s.of(n.Name); len(mine) > 0 {
			next.Spec.IPAM.PodCIDRs = append(next.Spec.IPAM.PodCIDRs, mine[0].String())
			continue
		}
		c, err := s.allocate(n.Name)
		if err != nil {
			p.o.metrics.poolErrors.Inc()
			problem = errors.Join(problem, err)
			continue
		}
		next.Spec.IPAM.PodCIDRs = append(next.Spec.IPAM.PodCIDRs, c.String())
	}
	api := p.o.client.Dynamic.Resource(ciliumio.Nodes)
	if !slices.Equal(next.Spec.IPAM.PodCIDRs, n.Spec.IPAM.PodCIDRs) {
		u, err := api.Get(ctx, n.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("get CiliumNode %s: %w", n.Name, err)
		}
		var cur ciliumio.Node
		if err := ciliumio.FromUnstructured(u, &cur); err != nil {
			return err
		}
		given := cur
		given.Spec.IPAM.PodCIDRs = next.Spec.IPAM.PodCIDRs
		obj, err := ciliumio.Apply(u, &cur, &given)
		if err != nil {
			return err
		}
		if _, err := api.Update(ctx, obj, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("give CiliumNode %s pod CIDRs %v: %w", n.Name, next.Spec.IPAM.PodCIDRs, err)
		}
		p.o.log.Info("pod CIDRs given", "node", n.Name, "podCIDRs", next.Spec.IPAM.PodCIDRs)
	}
	return p.report(ctx, n, problem)
}

func (p *pool) report(ctx context.Context, n *ciliumio.Node, problem error) error {
	msg := ""
	if problem != nil {
		msg = problem.Error()
	}
	if n.Status.IPAM.OperatorStatus.Error == msg {
		return nil
	}
	if msg != "" {
		p.o.log.Warn("node has a problem with its pod CIDRs", "node", n.Name, "error", msg)
	}
	api := p.o.client.Dynamic.Resource(ciliumio.Nodes)
	u, err := api.Get(ctx, n.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get CiliumNode %s: %w", n.Name, err)
	}
	var cur ciliumio.Node
	if err := ciliumio.FromUnstructured(u, &cur); err != nil {
		return err
	}
	told := cur
	told.Status.IPAM.OperatorStatus.Error = msg
	obj, err := ciliumio.Apply(u, &cur, &told)
	if err != nil {
		return err
	}
	if _, err := api.UpdateStatus(ctx, obj, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("status of CiliumNode %s: %w", n.Name, err)
	}
	return nil
}
