// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

// runTCP connects, reads the greeting and does Count exchanges of Size bytes on the connection.
func runTCP(ctx context.Context, p Probe, res *Result) error {
	start := time.Now()
	d := net.Dialer{Timeout: p.timeout()}
	c, err := d.DialContext(ctx, "tcp", p.Target)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	res.Local = c.LocalAddr().String()
	defer func() { res.Retransmits = retransmits(c) }()
	_ = c.SetDeadline(start.Add(p.timeout()))
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return fmt.Errorf("read the greeting: %w", err)
	}
	words := strings.Fields(line)
	if len(words) != 3 || words[0] != greeting {
		return fmt.Errorf("%w: %q is not the greeting of an echo server", errCorrupt, line)
	}
	res.Seen, res.Host = words[1], words[2]
	if p.Size == 0 && p.Count == 1 {
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
		if err := exchange(c, r, payload(p.Size), res); err != nil {
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
	n, err := io.Copy(io.Discard, resp.Body)
	res.Bytes += int(n)
	res.Status = resp.StatusCode
	res.Host = resp.Header.Get(headerHost)
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
