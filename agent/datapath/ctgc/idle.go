// SPDX-License-Identifier: Apache-2.0

package ctgc

import (
	"time"

	"lash.internal/lash/bpf"
)

// How long a flow may be idle, by protocol and state.
const (
	tcpNew         = 60 * time.Second
	tcpEstablished = 8000 * time.Second // above the usual keepalive of 7200 s
	tcpPickedUp    = 300 * time.Second
	tcpHalfClosed  = 120 * time.Second
	tcpClosed      = 10 * time.Second // FIN of both sides, or RST
	udpOneWay      = 30 * time.Second
	udpBothWays    = 120 * time.Second
	udpDNS         = 10 * time.Second // answered
	echo           = 10 * time.Second
	other          = 600 * time.Second
)

// Under pressure established TCP flows idle for longer than this go too.
const tcpEstablishedTight = time.Hour

// Numbers of protocols (source: IANA protocol numbers).
const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

const (
	tcpFIN = 0x01
	tcpRST = 0x04
)

const dnsPort = 53

// flow is what the entries of one flow say together.
type flow struct {
	proto  uint8
	dns    bool // one of the ports is that of DNS
	flags  uint16
	tcpO   uint8 // flags of TCP seen from the originator
	tcpR   uint8 // and from the other side
	idle   time.Duration
	twoWay bool // a reply was seen
}

// newFlow reads an entry. now is in the unit of Ct.Seen.
func newFlow(proto uint8, pa, pb uint16, c *bpf.Ct, now uint32) flow {
	return flow{
		proto: proto, dns: proto == protoUDP && (pa == bpf.Port(dnsPort) || pb == bpf.Port(dnsPort)),
		flags: c.Flags, tcpO: c.TcpO, tcpR: c.TcpR, idle: idle(c.Seen, now), twoWay: c.Flags&bpf.CtConfirmed != 0,
	}
}

// idle is the time from seen to now. The clock wraps; a packet may come after now was read.
func idle(seen, now uint32) time.Duration {
	d := int32(now - seen)
	if d < 0 {
		return 0
	}
	return time.Duration(uint64(d) << bpf.SeenShift)
}

// join adds what the other half of the flow has seen.
func (f flow) join(o flow) flow {
	f.flags |= o.flags
	f.tcpO |= o.tcpO
	f.tcpR |= o.tcpR
	f.idle = min(f.idle, o.idle)
	f.twoWay = f.twoWay || o.twoWay
	f.dns = f.dns || o.dns
	return f
}

// pressure is how much room there is in the table.
type pressure int

const (
	relaxed pressure = iota
	tight            // over fillTight
	full             // over fillFull
)

func pressureOf(fill float64) pressure {
	switch {
	case fill > fillFull:
		return full
	case fill > fillTight:
		return tight
	}
	return relaxed
}

// limit is how long the flow may be idle.
func (f flow) limit(p pressure) time.Duration {
	switch f.proto {
	case protoTCP:
		return f.limitTCP(p)
	case protoUDP:
		l := udpOneWay
		if f.twoWay {
			l = udpBothWays
			if f.dns {
				l = udpDNS
			}
		}
		if p >= tight {
			l /= 2
		}
		return l
	case protoICMP, protoICMPv6:
		return echo
	}
	return other
}

func (f flow) limitTCP(p pressure) time.Duration {
	closing := func(l time.Duration) time.Duration {
		switch p {
		case full:
			return l / 10
		case tight:
			return l / 4
		}
		return l
	}
	switch {
	case (f.tcpO|f.tcpR)&tcpRST != 0, f.tcpO&f.tcpR&tcpFIN != 0:
		return closing(tcpClosed)
	case (f.tcpO|f.tcpR)&tcpFIN != 0:
		return closing(tcpHalfClosed)
	case !f.twoWay && f.flags&bpf.CtPickedUp != 0:
		return tcpPickedUp
	case !f.twoWay:
		return tcpNew
	case p >= tight:
		return tcpEstablishedTight
	}
	return tcpEstablished
}

// Remaining is how much longer a flow lives if no packet comes. halves are its entries, one or two,
// now is in the unit of Ct.Seen.
func Remaining(now uint32, proto uint8, pa, pb uint16, c *bpf.Ct, halves ...*bpf.Ct) time.Duration {
	f := newFlow(proto, pa, pb, c, now)
	for _, h := range halves {
		f = f.join(newFlow(proto, pa, pb, h, now))
	}
	return f.limit(relaxed) - f.idle
}

func (f flow) expired(p pressure) bool { return f.idle > f.limit(p) }

// Bounds of the time between sweeps, and how full a table may be before idle flows have less time.
const (
	intervalMin   = 5 * time.Second
	intervalMax   = 5 * time.Minute
	intervalFirst = 30 * time.Second
	fillTight     = 0.75
	fillFull      = 0.9
)

// Every lookInterval it is asked whether a table fills so fast that a sweep is due before its time, which
// needs more than grownLeast of it to be new: otherwise there is nothing to win.
const (
	lookInterval = time.Second
	grownLeast   = 1.0 / 16
)

// nextInterval adapts the time to the next sweep to what the last one found: share is the part of
// the entries that it deleted, fill how full the fullest table is.
func nextInterval(last time.Duration, share, fill float64) time.Duration {
	switch {
	case fill > fillTight:
		return intervalMin
	case share > 0.25:
		last /= 2
	case share < 0.05:
		last = last * 3 / 2
	}
	return min(max(last, intervalMin), intervalMax)
}
