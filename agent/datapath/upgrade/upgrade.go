// SPDX-License-Identifier: Apache-2.0

// Package upgrade decides which generation of programs a node runs. A new one is loaded aside, over
// the maps that are there, and has to pass its self-test; if it does not, the generation that serves
// the node goes on serving it. Nothing here touches a hook.
package upgrade

import (
	"errors"
	"fmt"
	"log/slog"

	"github.com/cilium/ebpf"

	"lash.internal/lash/agent/datapath/attach"
	"lash.internal/lash/agent/datapath/loader"
	"lash.internal/lash/agent/datapath/maps"
	"lash.internal/lash/agent/datapath/selftest"
	"lash.internal/lash/bpf"
)

// ErrStandby says that the new programs are of no use and that the old ones live on maps that this
// version cannot fill: the node is served as it was, and nothing can be changed.
var ErrStandby = errors.New("the programs of the last version go on serving the node, but this version cannot keep their maps")

// Options of Choose.
type Options struct {
	BPFRoot  string
	Specs    *loader.Specs
	Maps     *maps.Set
	Config   bpf.Config
	Features string
	Log      *slog.Logger
}

// Choice is the generation to run, and those beside it.
type Choice struct {
	// Programs is the generation to run.
	Programs *loader.Programs
	// Previous is the one that serves the node, if it is another.
	Previous *loader.Programs
	// Problem says why Programs is not the generation of this version.
	Problem error
	others  []*loader.Programs // Previous is one of them
	failed  *loader.Programs   // given up by RollBack; who has taken programs of it may go on using them
	maps    *maps.Set
}

// Choose loads what has to be loaded. On an error nothing has changed.
func Choose(o Options) (*Choice, error) {
	gens, err := o.Specs.Generations(o.BPFRoot)
	if err != nil {
		return nil, err
	}
	c := &Choice{others: gens, maps: o.Maps}
	p, err := load(o)
	if err == nil && p.Adopted && len(gens) == 1 {
		c.use(p) // there is no other that could serve
		return c, nil
	}
	serving, serr := c.serving(o.BPFRoot)
	if serr != nil {
		c.Programs = p
		c.Close()
		return nil, errors.Join(err, serr)
	}
	if err != nil {
		if serving == nil {
			c.Close()
			return nil, fmt.Errorf("load programs: %w", err)
		}
		if len(o.Maps.Replaced) > 0 {
			c.Close()
			return nil, errors.Join(fmt.Errorf("%w: %w", ErrStandby, err), o.Maps.Revert())
		}
		p, c.Problem = serving, fmt.Errorf("the programs of this version are of no use here, those of generation %s go on serving: %w", serving.Hash, err)
	}
	c.use(p)
	if serving != nil && serving.Hash != p.Hash {
		c.Previous = serving
	}
	return c, nil
}

// use makes p the generation to run.
func (c *Choice) use(p *loader.Programs) {
	c.Programs = p
	for i, g := range c.others {
		if g.Hash != p.Hash {
			continue
		}
		if g != p {
			g.Close() // p has the same programs
		}
		c.others = append(c.others[:i:i], c.others[i+1:]...)
		return
	}
}

// load adopts the generation of this version, or loads and tests it.
func load(o Options) (*loader.Programs, error) {
	p, err := o.Specs.Load(o.BPFRoot, o.Maps, o.Config, o.Features, o.Log)
	if err != nil || p.Adopted {
		return p, err
	}
	sent, err := selftest.Run(o.Specs, o.Config)
	if err == nil {
		err = p.Accept()
	}
	if err != nil {
		return nil, errors.Join(err, p.Discard())
	}
	o.Log.Info("programs loaded and tested", "generation", p.Hash, "packets", sent)
	return p, nil
}

// serving is the pinned generation that most hooks have a program of; nil when none has.
func (c *Choice) serving(bpfRoot string) (*loader.Programs, error) {
	attached, err := attach.Serving(bpfRoot)
	if err != nil {
		return nil, fmt.Errorf("inventory of attached programs: %w", err)
	}
	var best *loader.Programs
	most := 0
	for _, g := range c.others {
		n := 0
		for _, id := range g.IDs() {
			n += attached[id]
		}
		if n > most {
			best, most = g, n
		}
	}
	return best, nil
}

// Others are the generations that are pinned beside the one to run.
func (c *Choice) Others() []*loader.Programs { return c.others }

// Known are the programs that may be attached, by generation.
func (c *Choice) Known() map[string][]ebpf.ProgramID {
	out := map[string][]ebpf.ProgramID{c.Programs.Hash: c.Programs.IDs()}
	for _, g := range c.others {
		out[g.Hash] = g.IDs()
	}
	if c.failed != nil {
		out[c.failed.Hash] = c.failed.IDs()
	}
	return out
}

// CanRollBack says whether there is a generation to go back to: it must run over the maps that this
// version keeps.
func (c *Choice) CanRollBack() bool { return c.Previous != nil && !c.maps.Diverged() }

// RollBack makes the generation that served the node before the one to run again.
func (c *Choice) RollBack(why error) {
	c.failed = c.Programs
	c.use(c.Previous)
	c.Previous, c.Problem = nil, why
}

// Retire forgets all generations but the one to run, and the maps that only they have used.
func (c *Choice) Retire() error {
	for _, g := range c.others {
		g.Close()
	}
	c.others, c.Previous = nil, nil
	return errors.Join(c.Programs.Retire(), c.maps.Commit())
}

// Close closes all programs. Pins and attachments stay.
func (c *Choice) Close() {
	for _, g := range c.others {
		g.Close()
	}
	for _, g := range []*loader.Programs{c.Programs, c.failed} {
		if g != nil {
			g.Close()
		}
	}
}
