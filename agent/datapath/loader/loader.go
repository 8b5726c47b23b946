// SPDX-License-Identifier: Apache-2.0

// Package loader brings the programs into the kernel. A generation is one set of programs with
// its constants; its name is a hash of everything that makes it what it is. A generation that is
// pinned already is adopted as it is, so that an agent that starts over an unchanged node loads
// nothing. A new one is loaded aside, and is adopted by nobody before it is accepted.
//
//	<bpf-root>/lash/gen/<hash>/<object>-<program>
//	<bpf-root>/lash/gen/<hash>_new/...              loaded, not accepted
package loader

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	stdmaps "maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/crash"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/bpf"
)

// version changes when the loader itself treats the same objects in another way.
const version = 1

// Programs is one generation of loaded programs.
type Programs struct {
	// Hash names the generation.
	Hash string
	// Adopted says that nothing had to be loaded.
	Adopted bool
	dir     string // of the pins
	byName  map[string]*ebpf.Program
	types   map[string]ebpf.AttachType
	ids     map[ebpf.ProgramID]string
}

// unaccepted ends the name of a folder of programs that were loaded aside.
const unaccepted = "_new"

func genDir(bpfRoot string) string { return filepath.Join(bpfRoot, "lash", "gen") }

// Object is one compiled file.
type Object struct {
	Name string
	Spec *ebpf.CollectionSpec
}

// Specs is the compiled objects, ready to be loaded.
type Specs struct {
	digest [sha256.Size]byte
	objs   []Object
}

// New joins objects. digest identifies them: it is another one whenever they do something else.
func New(digest [sha256.Size]byte, objs ...Object) *Specs { return &Specs{digest, objs} }

// Read parses the embedded objects.
func Read() (*Specs, error) {
	s := New(bpf.Digest())
	for _, o := range []struct {
		name string
		load func() (*ebpf.CollectionSpec, error)
	}{{"tc", bpf.LoadTc}, {"sock", bpf.LoadSock}, {"gc", bpf.LoadGc}} {
		spec, err := o.load()
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", o.name, err)
		}
		s.objs = append(s.objs, Object{o.name, spec})
	}
	return s, nil
}

// OpenMaps opens or creates the maps of all objects.
func (s *Specs) OpenMaps(bpfRoot string, sizes map[string]uint32) (*maps.Set, error) {
	specs := make([]*ebpf.CollectionSpec, 0, len(s.objs))
	for _, o := range s.objs {
		specs = append(specs, o.Spec)
	}
	return maps.Open(bpfRoot, sizes, specs...)
}

// Load adopts the pinned generation that fits, or loads a new one aside. features is the text form
// of the kernel's features, as they may change what is loaded.
func (s *Specs) Load(bpfRoot string, set *maps.Set, cfg bpf.Config, features string, log *slog.Logger) (*Programs, error) {
	p := s.programs()
	h := sha256.New()
	fmt.Fprintf(h, "%d %x %+v %s", version, s.digest, cfg, features)
	for _, name := range set.Names() {
		m, err := set.Get(name)
		if err != nil {
			return nil, err
		}
		// The identity of the maps is part of it: programs over maps that were replaced are of
		// no use.
		info, err := m.Info()
		if err != nil {
			return nil, fmt.Errorf("map %s: %w", name, err)
		}
		id, _ := info.ID()
		fmt.Fprintf(h, " %s=%d", name, id)
	}
	p.Hash = hex.EncodeToString(h.Sum(nil)[:8])
	p.dir = filepath.Join(genDir(bpfRoot), p.Hash)
	if err := p.adopt(s); err == nil {
		p.Adopted = true
		return p, p.index()
	} else if !errors.Is(err, fs.ErrNotExist) {
		log.Warn("cannot adopt the programs of this generation, loading them again", "generation", p.Hash, "error", err)
	}
	p.Close()
	aside := p.dir + unaccepted
	if err := errors.Join(os.RemoveAll(p.dir), os.RemoveAll(aside)); err != nil {
		return nil, fmt.Errorf("incomplete generation: %w", err)
	}
	p.dir = aside
	if err := p.load(s, set, cfg); err != nil {
		return nil, errors.Join(err, p.Discard())
	}
	return p, p.index()
}

func (s *Specs) programs() *Programs {
	p := &Programs{byName: map[string]*ebpf.Program{}, types: map[string]ebpf.AttachType{}, ids: map[ebpf.ProgramID]string{}}
	for _, o := range s.objs {
		for name, ps := range o.Spec.Programs {
			p.types[name] = ps.AttachType
		}
	}
	return p
}

// Accept makes programs that were loaded aside those that a later start adopts.
func (p *Programs) Accept() error {
	final, aside := strings.CutSuffix(p.dir, unaccepted)
	if !aside {
		return nil
	}
	if err := os.Rename(p.dir, final); err != nil {
		return fmt.Errorf("accept generation %s: %w", p.Hash, err)
	}
	p.dir = final
	return nil
}

// Discard removes the pins of programs and closes them.
func (p *Programs) Discard() error {
	p.Close()
	if err := os.RemoveAll(p.dir); err != nil {
		return fmt.Errorf("discard generation %s: %w", p.Hash, err)
	}
	return nil
}

// Generations opens all generations that are pinned and accepted. The programs of one that was
// loaded by another version may be others than those of s.
func (s *Specs) Generations(bpfRoot string) ([]*Programs, error) {
	entries, err := os.ReadDir(genDir(bpfRoot))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("generations: %w", err)
	}
	var out []*Programs
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), unaccepted) {
			continue
		}
		p := s.programs()
		p.Hash, p.Adopted, p.dir = e.Name(), true, filepath.Join(genDir(bpfRoot), e.Name())
		out = append(out, p)
		if err := p.open(); err != nil {
			for _, o := range out {
				o.Close()
			}
			return nil, fmt.Errorf("generation %s: %w", p.Hash, err)
		}
	}
	return out, nil
}

func (p *Programs) open() error {
	pins, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	for _, pin := range pins {
		_, name, ok := strings.Cut(pin.Name(), "-")
		if !ok {
			continue
		}
		prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, pin.Name()), nil)
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		p.byName[name] = prog
	}
	return p.index()
}

func (p *Programs) adopt(s *Specs) error {
	for _, o := range s.objs {
		for name := range o.Spec.Programs {
			prog, err := ebpf.LoadPinnedProgram(filepath.Join(p.dir, o.Name+"-"+name), nil)
			if err != nil {
				return err
			}
			p.byName[name] = prog
		}
	}
	return nil
}

func (p *Programs) load(s *Specs, set *maps.Set, cfg bpf.Config) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	for _, o := range s.objs {
		spec := o.Spec.Copy()
		if err := cfg.Apply(spec); err != nil {
			return fmt.Errorf("object %s: %w", o.Name, err)
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: set.Replacements(spec)})
		if err != nil {
			return fmt.Errorf("object %s: %w", o.Name, err)
		}
		for name, prog := range coll.Programs {
			p.byName[name] = prog
			delete(coll.Programs, name) // it stays open
			if err := prog.Pin(filepath.Join(p.dir, o.Name+"-"+name)); err != nil {
				coll.Close()
				return fmt.Errorf("pin program %s: %w", name, err)
			}
			crash.At(crash.Pinned)
		}
		coll.Close()
	}
	return nil
}

func (p *Programs) index() error {
	for name, prog := range p.byName {
		info, err := prog.Info()
		if err != nil {
			return fmt.Errorf("program %s: %w", name, err)
		}
		id, ok := info.ID()
		if !ok {
			return fmt.Errorf("program %s: kernel gives no id", name)
		}
		p.ids[id] = name
	}
	return nil
}

// Get returns a program of the generation.
func (p *Programs) Get(name string) (*ebpf.Program, error) {
	prog := p.byName[name]
	if prog == nil {
		return nil, fmt.Errorf("no program %s in generation %s", name, p.Hash)
	}
	return prog, nil
}

// AttachType returns the hook that a program was made for.
func (p *Programs) AttachType(name string) ebpf.AttachType { return p.types[name] }

// NameOf returns the name of a program of this generation, or "" for any other.
func (p *Programs) NameOf(id ebpf.ProgramID) string { return p.ids[id] }

// Uses says whether a program of the generation reads or writes a map.
func (p *Programs) Uses(program string, m *ebpf.Map) (bool, error) {
	prog, err := p.Get(program)
	if err != nil || m == nil {
		return false, nil // a generation without it
	}
	info, err := prog.Info()
	if err != nil {
		return false, fmt.Errorf("program %s: %w", program, err)
	}
	minfo, err := m.Info()
	if err != nil {
		return false, fmt.Errorf("map of program %s: %w", program, err)
	}
	ids, _ := info.MapIDs()
	id, ok := minfo.ID()
	return ok && slices.Contains(ids, id), nil
}

// Socket lists the programs for cgroup hooks, sorted.
func (p *Programs) Socket() []string {
	var out []string
	for name, prog := range p.byName {
		if t := prog.Type(); t == ebpf.CGroupSockAddr || t == ebpf.CGroupSock {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// IDs lists the kernel's numbers of the programs, sorted.
func (p *Programs) IDs() []ebpf.ProgramID { return slices.Sorted(stdmaps.Keys(p.ids)) }

// Retire removes the pins of all other generations. Programs that are still attached live on.
func (p *Programs) Retire() error {
	gens := filepath.Dir(p.dir)
	entries, err := os.ReadDir(gens)
	if err != nil {
		return fmt.Errorf("generations: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != filepath.Base(p.dir) {
			errs = append(errs, os.RemoveAll(filepath.Join(gens, e.Name())))
		}
	}
	return errors.Join(errs...)
}

// Close closes the programs. Pins and attachments stay.
func (p *Programs) Close() {
	for _, prog := range p.byName {
		prog.Close()
	}
	clear(p.byName)
}
