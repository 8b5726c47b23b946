// SPDX-License-Identifier: Apache-2.0

package rest

import (
	"context"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// countingHandler counts warnings and errors on their way to the log.
type countingHandler struct {
	slog.Handler
	count     *prometheus.CounterVec
	subsystem string
}

// CountLog returns a log handler that counts what passes through it to next, and the counters,
// which Register takes. The attribute "subsys" of a logger names the part that it speaks for.
func CountLog(next slog.Handler) (slog.Handler, prometheus.Collector) {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "cilium_errors_warnings_total", Help: "Messages in the log by level and part.",
	}, []string{"level", "subsystem"})
	return &countingHandler{Handler: next, count: c, subsystem: "agent"}, c
}

// Handle counts and passes on.
func (h *countingHandler) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Level >= slog.LevelError:
		h.count.WithLabelValues("error", h.subsystem).Inc()
	case r.Level >= slog.LevelWarn:
		h.count.WithLabelValues("warning", h.subsystem).Inc()
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs keeps the name of the part.
func (h *countingHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	out := *h
	out.Handler = h.Handler.WithAttrs(attrs)
	for _, a := range attrs {
		if a.Key == "subsys" {
			out.subsystem = a.Value.String()
		}
	}
	return &out
}

// WithGroup goes on counting.
func (h *countingHandler) WithGroup(name string) slog.Handler {
	out := *h
	out.Handler = h.Handler.WithGroup(name)
	return &out
}
