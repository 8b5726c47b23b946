// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func prefixes(s ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func TestFirstAddressesOfADualStackNode(t *testing.T) {
	p, err := New(prefixes("10.244.1.0/24", "fd00:10:244:1::/64"))
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(p.Routers()); got != "[10.244.1.1 fd00:10:244:1::1]" {
		t.Errorf("routers %s", got)
	}
	v4, v6, err := p.Allocate("default/a")
	if err != nil || v4.String() != "10.244.1.2" || v6.String() != "fd00:10:244:1::2" {
		t.Errorf("first pod: %s %s %v", v4, v6, err)
	}
	u := p.Usage()
	if len(u) != 2 || u[0].Capacity != 254 || u[0].Allocated != 2 || u[0].CIDRs != "10.244.1.0/24" {
		t.Errorf("usage %+v", u)
	}
}

func TestExhaustedPoolSaysSo(t *testing.T) {
	p, err := New(prefixes("192.0.2.0/29"))
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, _, err := p.Allocate("pod"); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = p.Allocate("one/more")
	if !errors.Is(err, ErrExhausted) || !strings.Contains(err.Error(), "all 6 IPv4 addresses of 192.0.2.0/29 are in use") {
		t.Errorf("got %v", err)
	}
}

func TestBadCIDRs(t *testing.T) {
	if _, err := New(prefixes("10.0.0.0/31")); !errors.Is(err, ErrTooSmall) {
		t.Errorf("/31: %v", err)
	}
	if _, err := New(nil); err == nil {
		t.Error("no CIDR was accepted")
	}
}

func TestReserve(t *testing.T) {
	p, err := New(prefixes("10.0.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Reserve("a", netip.MustParseAddr("10.0.0.2")); err != nil {
		t.Fatal(err)
	}
	if err := p.Reserve("a", netip.MustParseAddr("10.0.0.2")); err != nil {
		t.Errorf("same owner again: %v", err)
	}
	if err := p.Reserve("b", netip.MustParseAddr("10.0.0.2")); !errors.Is(err, ErrInUse) {
		t.Errorf("other owner: %v", err)
	}
	for _, a := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.255", "10.0.1.7", "fd00::1"} {
		if err := p.Reserve("b", netip.MustParseAddr(a)); !errors.Is(err, ErrOutside) {
			t.Errorf("%s: %v", a, err)
		}
	}
	if v4, _, _ := p.Allocate("c"); v4.String() != "10.0.0.3" {
		t.Errorf("the reserved address was given away: %s", v4)
	}
}

// TestSNATAddress: it is one that no pod has or gets, the one of before a restart if it can be, and a node
// that is too small goes without.
func TestSNATAddress(t *testing.T) {
	addrs := func(s ...string) []netip.Addr {
		var out []netip.Addr
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	for _, c := range []struct {
		what       string
		cidrs      []netip.Prefix
		have, pods []netip.Addr
		want       string
	}{
		{"new node", prefixes("10.0.0.0/24", "fd00::/64"), nil, nil, "[10.0.0.254 fd00::fffe]"},
		{"restart", prefixes("10.0.0.0/24", "fd00::/64"), addrs("10.0.0.1", "fd00::1", "10.0.0.77", "fd00::77"), addrs("10.0.0.254"), "[10.0.0.77 fd00::77]"},
		{"a pod has the last", prefixes("10.0.0.0/24"), addrs("10.0.0.1"), addrs("10.0.0.254", "10.0.0.253"), "[10.0.0.252]"},
		{"other range than before", prefixes("10.1.0.0/24"), addrs("10.0.0.1", "10.0.0.254"), nil, "[10.1.0.254]"},
		{"a pod has that of before", prefixes("10.0.0.0/24"), addrs("10.0.0.9"), addrs("10.0.0.9"), "[10.0.0.254]"},
		{"two ranges", prefixes("10.0.0.0/29", "10.0.1.0/28"), nil, nil, "[10.0.1.14]"},
		{"too small", prefixes("10.0.0.0/29", "fd00::/64"), nil, nil, "[fd00::fffe]"},
		{"full", prefixes("10.0.0.0/27"), nil, every("10.0.0.0/27"), "[]"},
	} {
		t.Run(c.what, func(t *testing.T) {
			p, err := New(c.cidrs)
			if err != nil {
				t.Fatal(err)
			}
			p.TakeSNAT(c.have, c.pods)
			own := p.SNAT()
			if got := fmt.Sprint(own); got != c.want {
				t.Fatalf("got %s, want %s", got, c.want)
			}
			for _, a := range c.pods {
				if err := p.Reserve("pod", a); err != nil && a != p.Router4() && !errors.Is(err, ErrOutside) {
					t.Errorf("restored pod: %v", err)
				}
			}
			p.Release(own...)
			for range 300 {
				v4, v6, err := p.Allocate("new")
				if slices.Contains(own, v4) || slices.Contains(own, v6) {
					t.Fatalf("a pod got it: %s, %s", v4, v6)
				}
				if err != nil {
					break
				}
			}
		})
	}
}

// every lists the addresses of a prefix.
func every(s string) []netip.Addr {
	var out []netip.Addr
	p := netip.MustParsePrefix(s)
	for a := p.Addr(); p.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	return out
}

// TestHealthAddress: the endpoint of the node keeps its addresses, and takes none that the node or a pod
// has.
func TestHealthAddress(t *testing.T) {
	addr := netip.MustParseAddr
	for _, c := range []struct {
		what       string
		cidrs      []string
		have, pods []netip.Addr
		want       string
	}{
		{"new node", []string{"10.0.0.0/24", "fd00::/64"}, nil, nil, "[10.0.0.253 fd00::fffd]"},
		{"restart", []string{"10.0.0.0/24"}, []netip.Addr{addr("10.0.0.77")}, nil, "[10.0.0.77]"},
		{"the node took that of before", []string{"10.0.0.0/24"}, []netip.Addr{addr("10.0.0.254")}, nil, "[10.0.0.253]"},
		{"a pod has the next", []string{"10.0.0.0/24"}, nil, []netip.Addr{addr("10.0.0.253")}, "[10.0.0.252]"},
		{"too small", []string{"10.0.0.0/29", "fd00::/64"}, nil, nil, "[fd00::fffd]"},
	} {
		var cidrs []netip.Prefix
		for _, s := range c.cidrs {
			cidrs = append(cidrs, netip.MustParsePrefix(s))
		}
		p, err := New(cidrs)
		if err != nil {
			t.Fatal(err)
		}
		p.TakeSNAT(nil, c.pods)
		p.TakeHealth(c.have, c.pods)
		own := p.Health()
		if got := fmt.Sprint(own); got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
		p.Release(own...)
		for range 300 {
			v4, v6, err := p.Allocate("ns/pod")
			if slices.Contains(own, v4) || slices.Contains(own, v6) {
				t.Errorf("%s: a pod got it: %s, %s", c.what, v4, v6)
			}
			if err != nil {
				break
			}
		}
		for _, u := range p.Usage() {
			for _, a := range u.Addresses {
				if slices.Contains(own, a.Addr) && a.Owner != HealthOwner {
					t.Errorf("%s: %s is owned by %s", c.what, a.Addr, a.Owner)
				}
			}
		}
	}
}

// TestPoolKeepsItsPromises runs random operations against a plain model: no address has two
// owners, only usable ones are given away, a released one rests while another is free, and
// exhaustion is reported exactly when nothing is left.
func TestPoolKeepsItsPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		bits := rapid.IntRange(27, 30).Draw(t, "bits")
		cidrs := []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.9.8.0/%d", bits))}
		if rapid.Bool().Draw(t, "second") {
			cidrs = append(cidrs, netip.MustParsePrefix("10.7.0.0/29"))
		}
		now := time.Unix(1000, 0)
		p, err := newPool(cidrs, func() time.Time { return now })
		if err != nil {
			t.Fatal(err)
		}
		capacity := 1<<(32-bits) - 2 - 1
		if len(cidrs) > 1 {
			capacity += 6
		}
		used := map[netip.Addr]bool{}
		released := map[netip.Addr]time.Time{}
		t.Repeat(map[string]func(*rapid.T){
			"allocate": func(t *rapid.T) {
				a, _, err := p.Allocate("x")
				if len(used) == capacity {
					if !errors.Is(err, ErrExhausted) {
						t.Fatalf("full pool gave %s, %v", a, err)
					}
					return
				}
				if err != nil {
					t.Fatalf("%d of %d used: %v", len(used), capacity, err)
				}
				if used[a] || a == p.Router4() {
					t.Fatalf("%s given away twice", a)
				}
				inside := false
				for _, c := range cidrs {
					last := add(c.Addr(), 1<<(32-c.Bits())-1)
					inside = inside || c.Contains(a) && a != c.Addr() && a != last
				}
				if !inside {
					t.Fatalf("%s is not usable", a)
				}
				tired := 0
				for _, at := range released {
					if now.Sub(at) < Rest {
						tired++
					}
				}
				if at, ok := released[a]; ok && now.Sub(at) < Rest && capacity-len(used) > tired {
					t.Fatalf("%s rested only %s while others were free", a, now.Sub(at))
				}
				delete(released, a)
				used[a] = true
			},
			"release": func(t *rapid.T) {
				for a := range used {
					p.Release(a)
					p.Release(a)
					delete(used, a)
					released[a] = now
					break
				}
			},
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.IntRange(1, 150).Draw(t, "seconds")) * time.Second)
			},
		})
	})
}
