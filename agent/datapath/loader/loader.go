// SPDX-License-Identifier: Apache-2.0

// Package loader brings the programs into the kernel. A generation is one set of programs with
// its constants; its name is a hash of everything that makes it what it is. A generation that is
// pinned already is adopted as it is, so that an agent that starts over an unchanged node loads
// nothing.
//
//	<bpf-root>/lash/gen/<hash>/<object>-<program>
package loader

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"

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
	root    string
	byName  map[string]*ebpf.Program
	types   map[string]ebpf.AttachType
	ids     map[ebpf.ProgramID]string
}

// object is one compiled file.
type object struct {
	name string
	load func() (*ebpf.CollectionSpec, error)
}

func objects() []object {
	return []object{{"tc", bpf.LoadTc}, {"sock", bpf.LoadSock}, {"gc", bpf.LoadGc}}
}

func genDir(bpfRoot string) string { return filepath.Join(bpfRoot, "lash", "gen") }

// Specs is the compiled objects, ready to be loaded.
type Specs struct {
	names []string
	specs []*ebpf.CollectionSpec
}

// Read parses the embedded objects.
func Read() (*Specs, error) {
	s := &Specs{}
	for _, o := range objects() {
		spec, err := o.load()
		if err != nil {
			return nil, fmt.Errorf("object %s: %w", o.name, err)
		}
		s.names = append(s.names, o.name)
		s.specs = append(s.specs, spec)
	}
	return s, nil
}

// OpenMaps opens or creates the maps of all objects.
func (s *Specs) OpenMaps(bpfRoot string) (*maps.Set, error) { return maps.Open(bpfRoot, s.specs...) }

// Load adopts the pinned generation that fits, or loads and pins a new one. features is the text
// form of the kernel's features, as they may change what is loaded.
func (s *Specs) Load(bpfRoot string, set *maps.Set, cfg bpf.Config, features string, log *slog.Logger) (*Programs, error) {
	p := &Programs{
		root: bpfRoot, byName: map[string]*ebpf.Program{},
		types: map[string]ebpf.AttachType{}, ids: map[ebpf.ProgramID]string{},
	}
	h := sha256.New()
	digest := bpf.Digest()
	fmt.Fprintf(h, "%d %x %+v %s", version, digest, cfg, features)
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
	dir := filepath.Join(genDir(bpfRoot), p.Hash)
	for _, spec := range s.specs {
		for name, ps := range spec.Programs {
			p.types[name] = ps.AttachType
		}
	}
	if err := p.adopt(s, dir); err == nil {
		p.Adopted = true
		return p, p.index()
	} else if !errors.Is(err, fs.ErrNotExist) {
		log.Warn("cannot adopt the programs of this generation, loading them again", "generation", p.Hash, "error", err)
	}
	p.Close()
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("incomplete generation: %w", err)
	}
	if err := p.load(s, dir, set, cfg); err != nil {
		p.Close()
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return p, p.index()
}

func (p *Programs) adopt(s *Specs, dir string) error {
	for i, spec := range s.specs {
		for name := range spec.Programs {
			prog, err := ebpf.LoadPinnedProgram(filepath.Join(dir, s.names[i]+"-"+name), nil)
			if err != nil {
				return err
			}
			p.byName[name] = prog
		}
	}
	return nil
}

func (p *Programs) load(s *Specs, dir string, set *maps.Set, cfg bpf.Config) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("pin directory: %w", err)
	}
	for i, spec := range s.specs {
		if err := cfg.Apply(spec); err != nil {
			return fmt.Errorf("object %s: %w", s.names[i], err)
		}
		coll, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: set.Replacements(spec)})
		if err != nil {
			return fmt.Errorf("object %s: %w", s.names[i], err)
		}
		for name, prog := range coll.Programs {
			p.byName[name] = prog
			delete(coll.Programs, name) // it stays open
			if err := prog.Pin(filepath.Join(dir, s.names[i]+"-"+name)); err != nil {
				coll.Close()
				return fmt.Errorf("pin program %s: %w", name, err)
			}
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

// Socket lists the programs for cgroup hooks, sorted.
func (p *Programs) Socket() []string {
	var out []string
	for name, prog := range p.byName {
		if prog.Type() == ebpf.CGroupSockAddr {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// Retire removes the pins of all other generations. Programs that are still attached live on.
func (p *Programs) Retire() error {
	entries, err := os.ReadDir(genDir(p.root))
	if err != nil {
		return fmt.Errorf("generations: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if e.Name() != p.Hash {
			errs = append(errs, os.RemoveAll(filepath.Join(genDir(p.root), e.Name())))
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
