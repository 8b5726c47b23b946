// SPDX-License-Identifier: Apache-2.0

package pod

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"lash.internal/lash/agent/api"
)

// monitorTypes are the words that -t takes.
var monitorTypes = []string{
	api.MonitorAgent, api.MonitorCapture, api.MonitorDebug, api.MonitorDrop, api.MonitorL7,
	api.MonitorPolicyVerdict, "recorder", api.MonitorTrace, api.MonitorTraceSock,
}

// monitorKnown are those of them that the datapath produces.
var monitorKnown = []string{api.MonitorDrop, api.MonitorTrace}

// reservedNames are printed in place of the numbers of reserved identities.
var reservedNames = map[uint32]string{
	0: "unknown", 1: "host", 2: "world", 3: "unmanaged", 4: "health", 5: "init", 6: "remote-node",
	7: "kube-apiserver", 8: "ingress", 9: "world-ipv4", 10: "world-ipv6",
}

// monitorFlags choose and shape what monitor prints.
type monitorFlags struct {
	types             []string
	from, to, related []uint
	verbose           int
	json, numeric     bool
	hex               bool
}

func newMonitor(a *app) *cobra.Command {
	var f monitorFlags
	c := &cobra.Command{
		Use: "monitor", Short: "Show packets that are dropped or forwarded, as it happens", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, t := range f.types {
				if !slices.Contains(monitorTypes, t) {
					return fmt.Errorf("unknown type %q: want one of %s", t, strings.Join(monitorTypes, ", "))
				}
				if !slices.Contains(monitorKnown, t) {
					return fmt.Errorf("this agent has no events of type %q: it has %s", t, strings.Join(monitorKnown, ", "))
				}
			}
			if !f.json {
				fmt.Fprintln(a.w.Err, "Press Ctrl-C to quit")
			}
			enc := json.NewEncoder(a.w.Out)
			enc.SetEscapeHTML(false)
			ctx, stop := context.WithCancel(c.Context())
			defer stop()
			if a.w.In != nil {
				// Of a client that goes away the runtime closes the input, but does not end the process.
				go func() { // ends with the input, at the latest with the process
					_, _ = io.Copy(io.Discard, a.w.In)
					stop()
				}()
			}
			err := a.client().Monitor(ctx, func(ev api.MonitorEvent) error {
				if !f.match(ev) {
					return nil
				}
				if f.json {
					return enc.Encode(ev)
				}
				return f.write(a.w.Out, ev)
			})
			if ctx.Err() != nil && c.Context().Err() == nil {
				return nil
			}
			if err == nil {
				return errors.New("the agent closed the stream of events")
			}
			return err
		},
	}
	fl := c.Flags()
	fl.StringSliceVarP(&f.types, "type", "t", nil, "only events of these types: "+strings.Join(monitorTypes, " "))
	fl.UintSliceVar(&f.from, "from", nil, "only events from these endpoints")
	fl.UintSliceVar(&f.to, "to", nil, "only events to these endpoints")
	fl.UintSliceVar(&f.related, "related-to", nil, "only events from or to these endpoints")
	fl.CountVarP(&f.verbose, "verbose", "v", "each layer on a line of its own; -vv: the captured bytes, too")
	fl.BoolVarP(&f.json, "json", "j", false, "one JSON object a line")
	fl.BoolVarP(&f.numeric, "numeric", "n", false, "numbers in place of the names of reserved identities")
	fl.BoolVar(&f.hex, "hex", false, "the captured bytes of each packet, undissected")
	return c
}

// match says whether the flags let an event through. The loss of events is always told.
func (f *monitorFlags) match(ev api.MonitorEvent) bool {
	if ev.Type == api.MonitorLost {
		return true
	}
	if len(f.types) > 0 && !slices.Contains(f.types, ev.Type) {
		return false
	}
	src, dst := uint(ev.Source), uint(ev.DstID)
	switch {
	case len(f.from) > 0 && !slices.Contains(f.from, src):
		return false
	case len(f.to) > 0 && !slices.Contains(f.to, dst):
		return false
	case len(f.related) > 0 && !slices.Contains(f.related, src) && !slices.Contains(f.related, dst):
		return false
	}
	return true
}

func (f *monitorFlags) identity(id uint32) string {
	if name, ok := reservedNames[id]; ok && !f.numeric {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

func (f *monitorFlags) write(w io.Writer, ev api.MonitorEvent) error {
	text := ""
	if ev.Summary != nil {
		text = ev.Summary.Text
	}
	var err error
	switch ev.Type {
	case api.MonitorLost:
		_, err = fmt.Fprintf(w, "Lost %d events\n", ev.Lost)
		return err
	case api.MonitorDrop:
		file := ""
		if ev.File != "" {
			file = fmt.Sprintf(", file %s:%d", ev.File, ev.Line)
		}
		_, err = fmt.Fprintf(w, "xx drop (%s) flow %s to endpoint %d, ifindex %d%s, , identity %s->%s: %s\n",
			ev.Reason, ev.Mark, ev.DstID, ev.IfIndex, file, f.identity(ev.SrcLabel), f.identity(ev.DstLabel), text)
	case api.MonitorTrace:
		orig := ""
		if ev.OrigIP != "" {
			orig = " orig-ip " + ev.OrigIP
		}
		crypt := ""
		if ev.Encrypted {
			crypt = "encrypted "
		}
		_, err = fmt.Fprintf(w, "%s flow %s %s, identity %s->%s state %s ifindex %s%s: %s\n",
			traceSummary(ev), ev.Mark, crypt, f.identity(ev.SrcLabel), f.identity(ev.DstLabel),
			ev.State, ev.Interface, orig, text)
	default:
		_, err = fmt.Fprintf(w, "%s: %s %s\n", ev.Type, ev.Msg, text)
	}
	if err != nil {
		return err
	}
	return f.details(w, ev)
}

// details prints the layers, the pods and the bytes when they are asked for.
func (f *monitorFlags) details(w io.Writer, ev api.MonitorEvent) error {
	if f.verbose > 0 {
		fmt.Fprintf(w, "  time %s bytes %d source endpoint %d", ev.Time.Format("15:04:05.000000"), ev.Bytes, ev.Source)
		if ev.SrcPod != "" || ev.DstPod != "" {
			fmt.Fprintf(w, " pods %s -> %s", firstOf(ev.SrcPod, "-"), firstOf(ev.DstPod, "-"))
		}
		fmt.Fprintln(w)
		if s := ev.Summary; s != nil {
			for _, l := range []struct {
				name string
				p    *api.Pair
			}{{"L2", s.L2}, {"L3", s.L3}, {"L4", s.L4}} {
				if l.p != nil {
					fmt.Fprintf(w, "  %s %s -> %s\n", l.name, l.p.Src, l.p.Dst)
				}
			}
			if s.Proto != "" {
				fmt.Fprintf(w, "  %s\n", strings.TrimSpace(s.Proto+" "+s.Info))
			}
		}
	}
	if (f.hex || f.verbose > 1) && len(ev.Data) > 0 {
		if _, err := io.WriteString(w, hex.Dump(ev.Data)); err != nil {
			return err
		}
	}
	return nil
}

// traceSummary is the arrow and the place: a packet leaves ("->") or comes from ("<-") it.
func traceSummary(ev api.MonitorEvent) string {
	dir, place, _ := strings.Cut(ev.ObservationPoint, "-")
	arrow := "->"
	n := ev.DstID
	if dir == "from" {
		arrow, n = "<-", ev.Source
	}
	if place == "endpoint" {
		return fmt.Sprintf("%s endpoint %d", arrow, n)
	}
	return arrow + " " + place
}
