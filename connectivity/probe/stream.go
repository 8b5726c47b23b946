// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"
)

// stream is a connection to an echo server.
type stream struct {
	net.Conn
	r          *bufio.Reader
	seen, host string
}

// conns are the connections that probes of a batch have left open, by name.
type conns struct {
	mu   sync.Mutex
	open map[string]*stream
}

func (c *conns) take(name string) *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.open[name]
	delete(c.open, name)
	return s
}

func (c *conns) keep(name string, s *stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open == nil {
		c.open = map[string]*stream{}
	}
	if old := c.open[name]; old != nil {
		_ = old.Close()
	}
	c.open[name] = s
}

func (c *conns) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.open {
		_ = s.Close()
	}
}

// connect opens a connection and reads the greeting.
func connect(ctx context.Context, p Probe, deadline time.Time) (*stream, error) {
	d := net.Dialer{Timeout: p.timeout()}
	c, err := d.DialContext(ctx, "tcp", p.Target)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(deadline)
	s := &stream{Conn: c, r: bufio.NewReader(c)}
	line, err := s.r.ReadString('\n')
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("read the greeting: %w", err)
	}
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != greeting {
		_ = c.Close()
		return nil, fmt.Errorf("%w: %q is not the greeting of an echo server", errCorrupt, line)
	}
	s.seen, s.host = words[1], words[2]
	return s, nil
}

// runTCP connects, reads the greeting and does Count exchanges of Size bytes on the connection.
func runTCP(ctx context.Context, p Probe, res *Result, open *conns) error {
	if p.Conn != "" && open == nil {
		return errors.New("only probes of a batch can leave a connection open")
	}
	start := time.Now()
	var c *stream
	keep := false
	if p.Conn != "" {
		c = open.take(p.Conn)
		keep = c == nil
	}
	if c == nil {
		var err error
		if c, err = connect(ctx, p, start.Add(p.timeout())); err != nil {
			return err
		}
	}
	err := exchanges(ctx, p, c, start, res)
	if keep && err == nil {
		open.keep(p.Conn, c)
		return nil
	}
	_ = c.Close()
	return err
}

func exchanges(ctx context.Context, p Probe, c *stream, start time.Time, res *Result) error {
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	defer func() { res.Retransmits = retransmits(c.Conn) }()
	_ = c.SetDeadline(start.Add(p.timeout()))
	res.Local = c.LocalAddr().String()
	res.Seen, res.Host = c.seen, c.host
	if p.Size == 0 && p.Count == 1 && p.Conn == "" {
		res.Sent = 1
		res.RTTMicros = time.Since(start).Microseconds()
		return nil
	}
	p.Size = max(p.Size, 1) // an exchange of nothing proves nothing
	for i := range p.Count {
		if i > 0 {
			if err := pause(ctx, p.IntervalMillis); err != nil {
				return err
			}
			start = time.Now()
			_ = c.SetDeadline(start.Add(p.timeout()))
		}
		res.Sent++
		if err := exchange(c, c.r, payload(p.Size), res); err != nil {
			return fmt.Errorf("exchange %d: %w", i+1, err)
		}
		res.RTTMicros = max(res.RTTMicros, time.Since(start).Microseconds())
	}
	return nil
}

// exchange writes b and reads it back at the same time: neither end can hold all of it.
func exchange(w io.Writer, r io.Reader, b []byte, res *Result) error {
	written := make(chan error, 1)
	go func() {
		_, err := w.Write(b)
		written <- err
	}()
	got := make([]byte, len(b))
	n, err := io.ReadFull(r, got)
	res.Bytes += n
	if werr := <-written; werr != nil && err != nil {
		return fmt.Errorf("send: %w", werr)
	}
	if err != nil {
		return fmt.Errorf("%d of %d bytes came back: %w", n, len(b), err)
	}
	if !bytes.Equal(b, got) {
		return fmt.Errorf("%w: byte %d of %d differs", errCorrupt, differ(b, got), len(b))
	}
	return nil
}

// retransmits reads the counter tcpi_total_retrans of struct tcp_info (linux/tcp.h).
func retransmits(c net.Conn) int {
	const (
		tcpInfo     = 11
		totalOffset = 100
	)
	return sockoptWord(c, syscall.IPPROTO_TCP, tcpInfo, totalOffset)
}

// sockoptWord reads a 32-bit number at an offset of a socket option that is a structure; 0 where the
// kernel gives no such option.
func sockoptWord(c net.Conn, level, option, offset uintptr) int {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return 0
	}
	var info [256]byte
	size, n := uint32(len(info)), 0
	_ = raw.Control(func(fd uintptr) {
		_, _, errno := syscall.Syscall6(syscall.SYS_GETSOCKOPT, fd, level, option,
			uintptr(unsafe.Pointer(&info[0])), uintptr(unsafe.Pointer(&size)), 0) //nolint:gosec // the kernel fills the buffer
		if errno == 0 && uintptr(size) >= offset+4 {
			n = int(binary.NativeEndian.Uint32(info[offset:]))
		}
	})
	return n
}

// runHTTP gets Target Count times; any answer is a success, its code is in the result.
func runHTTP(ctx context.Context, p Probe, res *Result) error {
	d := net.Dialer{Timeout: p.timeout()}
	t := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := d.DialContext(ctx, network, addr)
			if err == nil {
				res.Local = c.LocalAddr().String()
			}
			return c, err
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // reachability is what is asked
	}
	defer t.CloseIdleConnections()
	client := &http.Client{
		Transport:     t,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	target := p.Target
	if p.Size > 0 {
		target = strings.TrimSuffix(target, "/") + "/size?n=" + strconv.Itoa(p.Size)
	}
	for i := range p.Count {
		if i > 0 {
			if err := pause(ctx, p.IntervalMillis); err != nil {
				return err
			}
		}
		res.Sent++
		if err := getOnce(ctx, client, target, p, res); err != nil {
			return err
		}
	}
	return nil
}

// maxText bounds what is told of an answer.
const maxText = 1 << 10

func getOnce(ctx context.Context, client *http.Client, target string, p Probe, res *Result) error {
	ctx, cancel := context.WithTimeout(ctx, p.timeout())
	defer cancel()
	start := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	res.Status = resp.StatusCode
	res.Host = resp.Header.Get(headerHost)
	var text bytes.Buffer
	n := int64(0)
	if res.Host == "" {
		n, err = io.CopyN(&text, resp.Body, maxText)
		res.Text = text.String()
	}
	if err == nil {
		var rest int64
		rest, err = io.Copy(io.Discard, resp.Body)
		n += rest
	} else if errors.Is(err, io.EOF) {
		err = nil
	}
	res.Bytes += int(n)
	res.Seen = resp.Header.Get(headerSeen)
	if err != nil {
		return fmt.Errorf("read the body: %w", err)
	}
	if p.Size > 0 && int(n) != p.Size {
		return fmt.Errorf("%w: asked for %d bytes, got %d (HTTP %d)", errCorrupt, p.Size, n, resp.StatusCode)
	}
	res.RTTMicros = max(res.RTTMicros, time.Since(start).Microseconds())
	return nil
}
