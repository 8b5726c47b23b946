// SPDX-License-Identifier: Apache-2.0

package apiserver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/util/connrotation"

	"lash.internal/lash/agent/file"
)

// Options say which servers there are.
type Options struct {
	// Given are what the user, or the installation, has said: "host:port" each, in the order in which
	// they are tried.
	Given []string
	// File keeps what is learnt for the next start; empty: nothing is kept.
	File string
	// ReadOnly: the file is another's, this process only starts with it.
	ReadOnly bool
	Log      *slog.Logger
}

// Set is the servers that are known, and the one in use. It is an http.RoundTripper after Join, and the
// reconcile target of the addresses that are learnt, each known as "host:port".
type Set struct {
	o   Options
	log *slog.Logger
	// How often the one in use is asked whether it is well, and how long it may take to say so.
	probeEvery, probeTimeout time.Duration

	byHost, byService http.RoundTripper // how the server's certificate is judged, see Join

	mu      sync.Mutex
	learnt  []string
	inUse   string
	failing bool            // the last request to the one in use did not get through
	service map[string]bool // servers whose certificate names the Service only
	conns   map[string]*connrotation.ConnectionTracker
}

// kept is the content of the file.
type kept struct {
	Servers []string `json:"servers"`
}

// New returns the set of what was given and of what an earlier run has learnt. A file that cannot be
// read is put aside and is no error.
func New(o Options) (*Set, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	s := &Set{o: o, log: o.Log, probeEvery: probeEvery, probeTimeout: probeTimeout, service: map[string]bool{}, conns: map[string]*connrotation.ConnectionTracker{}}
	s.restore()
	all := s.all()
	if len(all) == 0 {
		return nil, errors.New("no address of an API server is known: set k8sServiceHost and k8sServicePort, or k8s.apiServerURLs")
	}
	s.inUse = all[0]
	s.log.Info("API servers", "known", all, "learnt", s.learnt)
	return s, nil
}

// restore reads the file.
func (s *Set) restore() {
	if s.o.File == "" {
		return
	}
	var k kept
	err := file.ReadJSON(s.o.File, &k)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil && len(k.Servers) == 0 {
		err = fmt.Errorf("%w: %s: no server in it", file.ErrBroken, s.o.File)
	}
	for _, a := range k.Servers {
		if e := Valid(a); err == nil && e != nil {
			err = fmt.Errorf("%w: %s: %w", file.ErrBroken, s.o.File, e)
		}
	}
	if err == nil {
		s.learnt = k.Servers
		return
	}
	aside := ""
	if errors.Is(err, file.ErrBroken) && !s.o.ReadOnly {
		if name, e := file.SetAside(s.o.File); e == nil {
			aside = name
		}
	}
	s.log.Warn("the addresses of API servers that this node has kept cannot be used; starting with those that were given", "given", s.o.Given, "error", err, "putAside", aside)
}

// Valid says what is wrong with a "host:port".
func Valid(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err == nil {
		if n, perr := strconv.ParseUint(port, 10, 16); perr != nil || n == 0 || host == "" || strings.ContainsAny(host, "/ ") {
			err = errors.New("not a host and a port")
		}
	}
	if err != nil {
		return fmt.Errorf("%q is not an address such as 192.0.2.1:6443: %w", address, err)
	}
	return nil
}

// all are the servers in the order in which they are tried.
func (s *Set) all() []string {
	out := slices.Clone(s.o.Given)
	for _, a := range s.learnt {
		if !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}

// Servers are all servers that are known, in the order in which they are tried, and the one in use.
func (s *Set) Servers() (all []string, inUse string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all(), s.inUse
}

// Load gives what is learnt.
func (s *Set) Load(context.Context) (map[string]struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]struct{}, len(s.learnt))
	for _, a := range s.learnt {
		out[a] = struct{}{}
	}
	return out, nil
}

// Set learns an address.
func (s *Set) Set(_ context.Context, address string, _ struct{}) error {
	if err := Valid(address); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.learnt, address) {
		s.learnt = append(s.learnt, address)
		s.log.Info("there is one more API server", "address", address)
	}
	return s.keep()
}

// Delete forgets an address. The last one that was learnt stays: with none, nothing could be learnt any
// more.
func (s *Set) Delete(_ context.Context, address string) error {
	s.mu.Lock()
	i := slices.Index(s.learnt, address)
	if i < 0 || len(s.learnt) == 1 {
		s.mu.Unlock()
		return nil
	}
	s.learnt = slices.Delete(s.learnt, i, i+1)
	s.log.Info("there is one API server less", "address", address)
	err := s.keep()
	gone := !slices.Contains(s.all(), address)
	leave := gone && s.inUse == address
	if leave {
		s.inUse = s.all()[0]
		s.log.Info("API server in use", "address", s.inUse)
	}
	s.mu.Unlock()
	if gone {
		s.hangUp(address) // what it still says may be out of date
	}
	return err
}

// keep writes the file.
func (s *Set) keep() error {
	if s.o.File == "" || s.o.ReadOnly {
		return nil
	}
	b := []byte(`{"servers":["` + strings.Join(s.learnt, `","`) + `"]}` + "\n")
	err := os.MkdirAll(filepath.Dir(s.o.File), 0o755)
	if err == nil {
		err = file.Write(s.o.File, b, 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep the addresses of API servers in %s: %w", s.o.File, err)
	}
	return nil
}
