// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// runDNS asks a name server for Target, without search path and without caches.
func runDNS(ctx context.Context, p Probe, res *Result) error {
	server := p.Server
	if server == "" {
		var err error
		if server, err = resolvConf("/etc/resolv.conf"); err != nil {
			return err
		}
	}
	network := p.Network
	if network == "" {
		network = "udp"
	}
	typ := dnsmessage.TypeA
	switch p.Type {
	case "", "A":
	case "AAAA":
		typ = dnsmessage.TypeAAAA
	default:
		return fmt.Errorf("unknown record type %q: A or AAAA", p.Type)
	}
	name, err := dnsmessage.NewName(strings.TrimSuffix(p.Target, ".") + ".")
	if err != nil {
		return fmt.Errorf("name %q: %w", p.Target, err)
	}
	query := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: uint16(rand.Uint32N(1 << 16)), RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: name, Type: typ, Class: dnsmessage.ClassINET}},
	}
	b, err := query.Pack()
	if err != nil {
		return err
	}
	start := time.Now()
	d := net.Dialer{Timeout: p.timeout()}
	c, err := d.DialContext(ctx, network, server)
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(start.Add(p.timeout()))
	res.Local = c.LocalAddr().String()
	res.Sent = 1
	answer, err := askServer(c, strings.HasPrefix(network, "tcp"), b)
	if err != nil {
		return err
	}
	res.RTTMicros = time.Since(start).Microseconds()
	res.Bytes = len(answer)
	return readAnswer(answer, query.ID, res)
}

// askServer does one exchange; over TCP each message has its length in front (RFC 1035, 4.2.2).
func askServer(c net.Conn, stream bool, query []byte) ([]byte, error) {
	if !stream {
		if _, err := c.Write(query); err != nil {
			return nil, err
		}
		buf := make([]byte, 1<<16)
		n, err := c.Read(buf)
		return buf[:n], err
	}
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(size[:]))
	_, err := io.ReadFull(c, buf)
	return buf, err
}

func readAnswer(b []byte, id uint16, res *Result) error {
	var m dnsmessage.Message
	if err := m.Unpack(b); err != nil {
		return fmt.Errorf("%w: %w", errCorrupt, err)
	}
	if m.ID != id || !m.Response {
		return fmt.Errorf("%w: answer %d to question %d", errCorrupt, m.ID, id)
	}
	switch m.RCode {
	case dnsmessage.RCodeSuccess:
	case dnsmessage.RCodeNameError:
		return errNoName
	default:
		return fmt.Errorf("name server: %s", m.RCode)
	}
	for _, r := range m.Answers {
		switch v := r.Body.(type) {
		case *dnsmessage.AResource:
			res.Answers = append(res.Answers, netip.AddrFrom4(v.A).String())
		case *dnsmessage.AAAAResource:
			res.Answers = append(res.Answers, netip.AddrFrom16(v.AAAA).String())
		}
	}
	slices.Sort(res.Answers)
	return nil
}

// resolvConf returns the first name server of a resolv.conf.
func resolvConf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if w := strings.Fields(sc.Text()); len(w) > 1 && w[0] == "nameserver" {
			return net.JoinHostPort(w[1], "53"), nil
		}
	}
	if err := sc.Err(); err != nil {
		return "", err
	}
	return "", errors.New(path + " names no server")
}
