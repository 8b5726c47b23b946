// SPDX-License-Identifier: Apache-2.0

package netlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"lash.internal/lash/agent/file"
)

// Sysctls writes below net of /proc/sys and remembers what it found there, so that the node can be
// given back as it was. Values of devices that Lash makes are not remembered: they go with them.
type Sysctls struct {
	root string // /proc/sys/net, or where the node's is mounted
	file string // saved originals, JSON: path -> value

	// Broken is where a file of saved originals was put that could not be read; empty: there was
	// none. What the node had before is not known then.
	Broken string
}

// NewSysctls uses the first of roots that exists; saved is the file that keeps original values.
func NewSysctls(saved string, roots ...string) (*Sysctls, error) {
	for _, r := range roots {
		if _, err := os.Stat(filepath.Join(r, "ipv4")); err == nil {
			s := &Sysctls{root: r, file: saved}
			return s, s.setAside()
		}
	}
	return nil, fmt.Errorf("none of %s is /proc/sys/net: %w", strings.Join(roots, ", "), fs.ErrNotExist)
}

// Get reads net/<path>, such as ipv4/ip_forward.
func (s *Sysctls) Get(path string) (string, error) {
	b, err := os.ReadFile(filepath.Join(s.root, path))
	return strings.TrimSpace(string(b)), err
}

// set writes a value that differs, without remembering the old one.
func (s *Sysctls) set(path, value string) error {
	have, err := s.Get(path)
	if err != nil || have == value {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.root, path), []byte(value), 0o644); err != nil {
		return fmt.Errorf("sysctl net/%s=%s: %w", path, value, err)
	}
	return nil
}

// Keep writes a value of the node itself and remembers the first original.
func (s *Sysctls) Keep(path, value string) error {
	have, err := s.Get(path)
	if err != nil || have == value {
		return err
	}
	saved, err := s.load()
	if err != nil {
		return err
	}
	if _, ok := saved[path]; !ok {
		saved[path] = have
		if err := s.store(saved); err != nil {
			return err
		}
	}
	return s.set(path, value)
}

func (s *Sysctls) setAside() (err error) {
	if _, bad := s.load(); errors.Is(bad, file.ErrBroken) {
		s.Broken, err = file.SetAside(s.file)
	}
	return err
}

func (s *Sysctls) load() (map[string]string, error) {
	out := map[string]string{}
	if err := file.ReadJSON(s.file, &out); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("saved sysctls: %w", err)
	}
	return out, nil
}

func (s *Sysctls) store(m map[string]string) error {
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(s.file), 0o755); err != nil {
		return err
	}
	return file.Write(s.file, b, 0o600)
}

// Saved reads, from the file of saved originals, the values that settings had before Lash changed
// them, by path below net. It writes nothing.
func Saved(file string) (map[string]string, error) { return (&Sysctls{file: file}).load() }

// Restore writes back all remembered values and forgets them. A device that is gone is no error.
func (s *Sysctls) Restore() error {
	saved, err := s.load()
	if err != nil {
		return err
	}
	var errs []error
	for path, v := range saved {
		if v == "" {
			v = "\n" // an empty list has to be written as a line
		}
		if err := os.WriteFile(filepath.Join(s.root, path), []byte(v), 0o644); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("sysctl net/%s: %w", path, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(s.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Forwarding makes the node forward packets of the enabled families. With IPv6 forwarding the
// kernel would stop to accept router advertisements on devices that have accept_ra 1, so those are
// set to 2, which means the same on a router.
func (s *Sysctls) Forwarding(v4, v6 bool) error {
	if v4 {
		if err := s.Keep("ipv4/ip_forward", "1"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	devs, err := os.ReadDir(filepath.Join(s.root, "ipv6/conf"))
	if err != nil {
		return fmt.Errorf("ipv6 is enabled but the kernel has none: %w", err)
	}
	if have, err := s.Get("ipv6/conf/all/forwarding"); err != nil || have == "1" {
		return err
	}
	for _, d := range devs {
		path := "ipv6/conf/" + d.Name() + "/accept_ra"
		if have, err := s.Get(path); err == nil && have == "1" {
			if err := s.Keep(path, "2"); err != nil {
				return err
			}
		}
	}
	return s.Keep("ipv6/conf/all/forwarding", "1")
}

// NoGlobalReversePath takes the reverse-path filter off the value that bears on all devices, since
// the stricter of it and a device's own counts and ours need none. Every other device, and the
// default of later ones, gets what it had in effect.
func (s *Sysctls) NoGlobalReversePath() error {
	all, err := s.Get("ipv4/conf/all/rp_filter")
	if err != nil || all == "0" {
		return err
	}
	devs, err := os.ReadDir(filepath.Join(s.root, "ipv4/conf"))
	if err != nil {
		return err
	}
	for _, d := range devs {
		if d.Name() == "all" || ours(d.Name()) {
			continue
		}
		path := "ipv4/conf/" + d.Name() + "/rp_filter"
		if own, err := s.Get(path); err == nil && own < all {
			if err := s.Keep(path, all); err != nil {
				return err
			}
		}
	}
	return s.Keep("ipv4/conf/all/rp_filter", "0")
}

// ReservePorts keeps the node's own sockets out of the ports lo to hi, both inclusive, unless they
// are reserved already.
func (s *Sysctls) ReservePorts(lo, hi uint16) error {
	const path = "ipv4/ip_local_reserved_ports"
	have, err := s.Get(path)
	if err != nil || reserved(have, lo, hi) {
		return err
	}
	want := fmt.Sprintf("%d-%d", lo, hi)
	if have != "" {
		want = have + "," + want
	}
	return s.Keep(path, want)
}

// reserved says whether one range of list, in the kernel's merged form, covers lo to hi.
func reserved(list string, lo, hi uint16) bool {
	for _, r := range strings.Split(list, ",") {
		a, b, isRange := strings.Cut(strings.TrimSpace(r), "-")
		if !isRange {
			b = a
		}
		from, err1 := strconv.Atoi(a)
		to, err2 := strconv.Atoi(b)
		if err1 == nil && err2 == nil && from <= int(lo) && int(hi) <= to {
			return true
		}
	}
	return false
}

// silent keeps the kernel from having IPv6 on a device that Lash makes.
func (s *Sysctls) silent(name string) error {
	err := s.set("ipv6/conf/"+name+"/disable_ipv6", "1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the kernel has none
	}
	return err
}

// device sets what the devices that Lash makes need: no reverse-path filter, forwarding on.
func (s *Sysctls) device(name string, v4, v6 bool) error {
	if v4 {
		if err := s.set("ipv4/conf/"+name+"/rp_filter", "0"); err != nil {
			return err
		}
		if err := s.set("ipv4/conf/"+name+"/forwarding", "1"); err != nil {
			return err
		}
	}
	if !v6 {
		return nil
	}
	return s.set("ipv6/conf/"+name+"/forwarding", "1")
}
