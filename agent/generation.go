// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"lash.internal/lash/agent/crash"
	"lash.internal/lash/agent/datapath/attach"
)

// probation is how long the generation of before stays pinned after an upgrade.
const probation = 30 * time.Second

// putIntoService replaces the programs of an older generation, or those that are attached another
// way, on all hooks: the receivers of what other programs send first, then the senders, then the
// sockets. Until every source has been complete they were left alone, since the maps of a new
// generation may have begun empty.
func (a *Agent) putIntoService(ctx context.Context) error {
	k := a.kernel
	k.attach.Release()
	err := a.syncHooks(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err == nil {
		err = k.attach.Finish(a.wantsHook)
	}
	if err != nil {
		a.log.Warn("not every hook has its program yet", "error", err)
	}
	return nil
}

func (a *Agent) syncHooks(ctx context.Context) error {
	var sockets []string
	for name := range a.socketHooks() {
		sockets = append(sockets, name)
	}
	return errors.Join(a.paths.hooks.Sync(ctx, a.hooksOfAll()...), a.paths.sockets.Sync(ctx, sockets...))
}

// settle ends an upgrade: when the time of probation is over and every hook runs the new generation,
// the old one is forgotten; if some could not be brought to it, all go back.
func (a *Agent) settle(ctx context.Context, probation, interval time.Duration) error {
	defer a.flowsMove.Store(false)
	k := a.kernel
	over := time.Now().Add(probation)
	if k.choice.Previous == nil {
		over = time.Now() // there is nothing to go back to
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		st := k.attach.State()
		switch {
		case st.Handover:
			if err := k.attach.Finish(a.wantsHook); err != nil {
				a.log.Warn("programs of ours are attached both by tcx and by cls_bpf", "error", err)
			}
		case time.Now().Before(over):
		case st.Behind > 0 && k.choice.CanRollBack():
			a.rollBack(ctx, st)
		case st.Behind > 0 && k.choice.Previous != nil:
			// Back is no way: the maps of the old generation are kept no more.
			k.setProblem(fmt.Errorf("%d of %d hooks could not be brought to generation %s and run %s, over maps of before",
				st.Behind, st.Hooks, st.Generation, k.choice.Previous.Hash))
		default:
			k.setProblem(k.choice.Problem)
			a.retire()
			if k.choice.Problem != nil {
				return nil // the programs of before go on writing into the tables of before
			}
			return a.moveFlows(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// rollBack puts the generation of before on all hooks again.
func (a *Agent) rollBack(ctx context.Context, st attach.State) {
	k := a.kernel
	why := fmt.Errorf("%d of %d hooks could not be brought to generation %s, all are back at %s", st.Behind, st.Hooks, st.Generation, k.choice.Previous.Hash)
	k.choice.RollBack(why)
	a.log.Error("upgrade of the programs failed", "error", why)
	k.setProblem(why)
	k.note()
	k.attach.Use(k.choice.Programs)
	if err := a.syncHooks(ctx); err != nil && ctx.Err() == nil {
		a.log.Warn("not every hook has its program yet", "error", err)
	}
}

// retire forgets the generations that nothing runs any more. What cannot be forgotten costs memory,
// nothing else.
func (a *Agent) retire() {
	k := a.kernel
	if err := k.choice.Retire(); err != nil {
		a.log.Warn("programs and maps of older generations stay pinned", "error", err)
	}
	crash.At(crash.Retired)
	k.note()
}

// moveFlows takes the flows that no packet has asked for out of the tables of before, when nothing
// runs any more that writes there. Then programs that do not look there replace those that do.
func (a *Agent) moveFlows(ctx context.Context) error {
	k := a.kernel
	moving := k.maps.Moving()
	if len(moving) == 0 {
		return nil
	}
	for _, name := range moving {
		n, err := a.svc.flows.Move(name, k.maps.Of(name))
		if err != nil {
			a.log.Error("flows stay in a table of before; the next start goes on", "table", name, "error", err)
			return nil
		}
		if err := k.maps.Moved(name); err != nil {
			a.log.Warn("an empty table of before stays pinned", "table", name, "error", err)
			return nil
		}
		a.log.Info("flows moved", "from", name, "flows", n)
		crash.At(crash.Moved)
	}
	k.constant.FlowsMove = false
	next, err := k.chooseAgain()
	if err != nil {
		a.log.Warn("the programs that look into both tables stay until the next start", "error", err)
		return nil
	}
	last := k.choice
	k.choice = next
	k.note()
	k.attach.Use(next.Programs)
	if err := a.syncHooks(ctx); err != nil && ctx.Err() == nil {
		a.log.Warn("not every hook has its program yet", "error", err)
	}
	progs, err := flowPrograms(k)
	if err != nil {
		return err
	}
	a.svc.flows.Use(progs)
	last.Close()
	a.retire()
	a.giveBack()
	return nil
}
