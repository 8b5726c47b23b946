// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Soak is a steady load over one path for as long as something happens to it: datagrams with
// sequence numbers at a fixed rate, connections that stay, and connections that come and go as fast
// as they can. Nothing waits for anything else, so what one loses the others do not hide.
type Soak struct {
	UDP string // host:port of the echo server; empty: none
	TCP string
	// Rate is the number of datagrams a second, Flows the number of connections that stay.
	Rate, Flows int
	// New opens connections one after the other.
	New bool
	// Duration is how long; 0: until ctx ends.
	Duration time.Duration
	// Late is how long after the last answer a datagram counts as lost, by default 10 s: a busy machine
	// may have the server answer after seconds.
	Late time.Duration
}

// SoakResult says what a soak met. Times are in microseconds.
type SoakResult struct {
	UDPSent       int   `json:"udpSent"`
	UDPLost       int   `json:"udpLost"` // never came back
	UDPFull       int   `json:"udpFull"` // came back, but the socket's buffer was full
	UDPDuplicated int   `json:"udpDuplicated"`
	UDPReordered  int   `json:"udpReordered"`
	UDPLongestGap int64 `json:"udpLongestGapUs"` // between two answers
	Flows         int   `json:"flows"`
	FlowsBroken   int   `json:"flowsBroken"`
	Exchanges     int64 `json:"exchanges"` // on the connections that stay
	Retransmits   int   `json:"retransmits"`
	FlowLongest   int64 `json:"flowLongestUs"` // slowest exchange
	NewDone       int   `json:"newDone"`
	NewFailed     int   `json:"newFailed"`
	NewLongest    int64 `json:"newLongestUs"` // from connect to the answer
	// Holes are the first runs of datagrams that were lost, each with its time after the start.
	Holes []string `json:"holes,omitempty"`
	// Errors are the first of each kind.
	Errors []string `json:"errors,omitempty"`
}

// soaking limits.
const (
	soakTimeout  = 30 * time.Second // of an exchange or connection: far above any retransmission, and above how long a busy machine keeps a server from running
	soakLate     = 10 * time.Second
	soakTwice    = 500 * time.Millisecond // for the last answers to come once more
	soakInterval = 250 * time.Millisecond // between the exchanges of one connection
	soakErrors   = 8
)

type soak struct {
	Soak
	mu  sync.Mutex
	res SoakResult
}

// Run does the soak.
func (s Soak) Run(ctx context.Context) SoakResult {
	if s.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Duration)
		defer cancel()
	}
	if s.Late == 0 {
		s.Late = soakLate
	}
	k := &soak{Soak: s}
	var wg sync.WaitGroup
	if s.UDP != "" && s.Rate > 0 {
		wg.Go(func() { k.datagrams(ctx) })
	}
	for i := range s.Flows {
		wg.Go(func() { k.flow(ctx, i) })
	}
	if s.New {
		wg.Go(func() { k.fresh(ctx) })
	}
	wg.Wait()
	return k.res
}

func (k *soak) fail(what string, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	text := what + ": " + err.Error()
	if len(k.res.Errors) < soakErrors && !slices.Contains(k.res.Errors, text) {
		k.res.Errors = append(k.res.Errors, text)
	}
}

// datagrams sends numbered datagrams by the clock and counts what comes back.
func (k *soak) datagrams(ctx context.Context) {
	c, err := net.Dial("udp", k.UDP)
	if err != nil {
		k.fail("udp", err)
		return
	}
	defer c.Close()
	readBuffer(c)
	t := &tally{}
	result := make(chan []bool, 1)
	go func() { result <- k.count(c, t) }()
	start, step := time.Now(), time.Second/time.Duration(k.Rate)
	b := make([]byte, 64)
	for ctx.Err() == nil {
		n := t.sent.Add(1)
		if wait := time.Until(start.Add(time.Duration(n-1) * step)); wait > 0 {
			time.Sleep(wait) // the clock that the rate is about
		}
		binary.BigEndian.PutUint64(b, n)
		if _, err := c.Write(b); err != nil {
			k.fail("udp send", err)
		}
	}
	// From now on each answer moves the deadline.
	t.over.Store(true)
	_ = c.SetReadDeadline(time.Now().Add(k.Late))
	if t.answered.Load() == t.sent.Load() {
		_ = c.SetReadDeadline(time.Now().Add(soakTwice))
	}
	seen := <-result
	k.mu.Lock()
	defer k.mu.Unlock()
	k.res.UDPSent, k.res.UDPFull = len(seen), socketDrops(c)
	k.res.UDPLost = -k.res.UDPFull
	hole := 0
	for i, ok := range append(seen, true) {
		if !ok {
			hole++
			continue
		}
		if hole > 0 && len(k.res.Holes) < soakErrors {
			k.res.Holes = append(k.res.Holes, fmt.Sprintf("%d at %.2fs", hole, (time.Duration(i-hole)*step).Seconds()))
		}
		k.res.UDPLost += hole
		hole = 0
	}
}

// tally is what the sender and the reader of datagrams know of each other.
type tally struct {
	sent, answered atomic.Uint64
	over           atomic.Bool // nothing more is sent
}

// count reads answers until no more come after the last datagram was sent, and returns which had one.
func (k *soak) count(c net.Conn, t *tally) []bool {
	var seen []bool
	var highest uint64
	var duplicated, reordered int
	var longest time.Duration
	var at time.Time
	b := make([]byte, 2048)
	for {
		n, err := c.Read(b)
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				break
			}
			k.fail("udp receive", err) // an ICMP error is told to the next read and is over then
			if errors.Is(err, net.ErrClosed) {
				break
			}
			continue
		}
		now := time.Now()
		if n < 8 {
			continue
		}
		number, all := binary.BigEndian.Uint64(b), t.sent.Load()
		if number == 0 || number > all {
			k.fail("udp receive", fmt.Errorf("number %d was never sent", number))
			continue
		}
		if number > uint64(len(seen)) {
			seen = append(seen, make([]bool, all-uint64(len(seen)))...)
		}
		if seen[number-1] {
			duplicated++
			continue
		}
		seen[number-1] = true
		if answered := t.answered.Add(1); t.over.Load() {
			wait := k.Late
			if answered == t.sent.Load() {
				wait = soakTwice
			}
			_ = c.SetReadDeadline(now.Add(wait))
		}
		if number < highest {
			reordered++
		}
		highest = max(highest, number)
		if !at.IsZero() {
			longest = max(longest, now.Sub(at))
		}
		at = now
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.res.UDPDuplicated, k.res.UDPReordered, k.res.UDPLongestGap = duplicated, reordered, longest.Microseconds()
	return append(seen, make([]bool, t.sent.Load()-uint64(len(seen)))...)
}

// readBuffer makes room for all that comes while a busy machine does not run this program: as much as
// is asked for where that is allowed, else as much as the host gives.
func readBuffer(c net.Conn) {
	const size = 8 << 20
	u, ok := c.(*net.UDPConn)
	if !ok {
		return
	}
	forced := errors.ErrUnsupported
	if raw, err := u.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			forced = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUFFORCE, size)
		})
	}
	if forced != nil {
		_ = u.SetReadBuffer(size)
	}
}

// socketDrops reads how many datagrams a socket had no room for: SK_MEMINFO_DROPS of SO_MEMINFO
// (linux/sock_diag.h).
func socketDrops(c net.Conn) int {
	const (
		soMemInfo   = 55
		dropsOffset = 8 * 4
	)
	return sockoptWord(c, syscall.SOL_SOCKET, soMemInfo, dropsOffset)
}

// flow keeps one connection and exchanges a little on it.
func (k *soak) flow(ctx context.Context, i int) {
	broken := func(err error) {
		k.fail("tcp", err)
		k.mu.Lock()
		k.res.FlowsBroken++
		k.mu.Unlock()
	}
	k.mu.Lock()
	k.res.Flows++
	k.mu.Unlock()
	c, r, err := greet(ctx, k.TCP)
	if err != nil {
		if !over(ctx) {
			broken(err)
		}
		return
	}
	defer c.Close()
	defer func() {
		n := retransmits(c)
		k.mu.Lock()
		k.res.Retransmits += n
		k.mu.Unlock()
	}()
	// All begin at once and are spread over the interval from then on.
	tick := time.NewTicker(1 + soakInterval*time.Duration(i)/time.Duration(k.Flows))
	defer tick.Stop()
	out, in := payload(64), make([]byte, 64)
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			tick.Reset(soakInterval)
		}
		start := time.Now()
		_ = c.SetDeadline(start.Add(soakTimeout))
		_, err := c.Write(out)
		if err == nil {
			_, err = io.ReadFull(r, in)
		}
		if err != nil {
			broken(err)
			return
		}
		took := time.Since(start).Microseconds()
		k.mu.Lock()
		k.res.Exchanges++
		k.res.FlowLongest = max(k.res.FlowLongest, took)
		k.mu.Unlock()
	}
}

// over says whether the soak ends. A deadline counts from its time on: the context itself may say so
// later, when connections have been refused for it already.
func over(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	return ctx.Err() != nil || (ok && !time.Now().Before(end))
}

func greet(ctx context.Context, target string) (net.Conn, *bufio.Reader, error) {
	d := net.Dialer{Timeout: soakTimeout}
	c, err := d.DialContext(ctx, "tcp", target)
	if err != nil {
		return nil, nil, err
	}
	_ = c.SetDeadline(time.Now().Add(soakTimeout))
	r := bufio.NewReader(c)
	if _, err := r.ReadString('\n'); err != nil {
		c.Close()
		return nil, nil, fmt.Errorf("read the greeting: %w", err)
	}
	return c, r, nil
}

// fresh opens a connection, reads the greeting and closes, again and again. It closes by reset, as
// source ports would otherwise run out; the same ports come round again soon.
func (k *soak) fresh(ctx context.Context) {
	for !over(ctx) {
		start := time.Now()
		c, _, err := greet(ctx, k.TCP)
		took := time.Since(start).Microseconds()
		if err != nil {
			if over(ctx) {
				return
			}
			k.fail("new tcp", err)
			k.mu.Lock()
			k.res.NewFailed++
			k.mu.Unlock()
			continue
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		c.Close()
		k.mu.Lock()
		k.res.NewDone++
		k.res.NewLongest = max(k.res.NewLongest, took)
		k.mu.Unlock()
	}
}

// SoakCommand is the command line "soak [flags]". It runs for --seconds or until ctx ends or in does,
// and writes a SoakResult.
func SoakCommand(ctx context.Context, args []string, in io.Reader, out, errOut io.Writer) error {
	fs := flag.NewFlagSet("soak", flag.ContinueOnError)
	fs.SetOutput(errOut)
	var s Soak
	fs.StringVar(&s.UDP, "udp", "", "host:port of the UDP echo")
	fs.StringVar(&s.TCP, "tcp", "", "host:port of the TCP echo")
	fs.IntVar(&s.Rate, "rate", 1000, "datagrams a second")
	fs.IntVar(&s.Flows, "flows", 0, "connections that stay")
	fs.BoolVar(&s.New, "new", false, "also open and close connections, one after the other")
	seconds := fs.Int("seconds", 0, "how long; 0: until standard input ends")
	if helped, err := parse(fs, args); helped || err != nil {
		return err
	}
	switch {
	case fs.NArg() > 0:
		return fmt.Errorf("soak takes no argument %q", fs.Arg(0))
	case s.TCP == "" && (s.New || s.Flows > 0):
		return errors.New("--flows and --new need --tcp")
	case s.Rate < 0 || s.Rate > 100000 || s.Flows < 0:
		return errors.New("--rate must be 0 to 100000, --flows 0 or more")
	}
	s.Duration = time.Duration(*seconds) * time.Second
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.Duration == 0 {
		go func() { // ends with in, at the latest with the process
			_, _ = io.Copy(io.Discard, in)
			cancel()
		}()
	}
	return json.NewEncoder(out).Encode(s.Run(ctx))
}
