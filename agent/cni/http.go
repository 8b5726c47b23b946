// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"time"

	"lash.internal/lash/agent/cni/wire"
)

// maxBody bounds a request; a GC list of 500 attachments is some 100 kB.
const maxBody = 4 << 20

// workTime bounds the work of one request. The plugin's own patience ends before kubelet's.
const workTime = 60 * time.Second

// Handler serves the paths of package wire.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	handle(mux, wire.PathAdd, s.Add)
	handle(mux, wire.PathCheck, s.Check)
	handle(mux, wire.PathReady, func(ctx context.Context, a wire.Attachment) (struct{}, error) {
		return struct{}{}, s.MarkReady(ctx, a)
	})
	handle(mux, wire.PathDel, func(ctx context.Context, a wire.Attachment) (struct{}, error) {
		return struct{}{}, s.Del(ctx, a)
	})
	handle(mux, wire.PathStatus, func(context.Context, struct{}) (struct{}, error) {
		return struct{}{}, s.Status()
	})
	handle(mux, wire.PathGC, func(ctx context.Context, r wire.GCRequest) (struct{}, error) {
		return struct{}{}, s.GC(ctx, r.Valid)
	})
	return mux
}

func handle[In, Out any](mux *http.ServeMux, path string, f func(context.Context, In) (Out, error)) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		if err == nil {
			err = json.Unmarshal(body, &in)
		}
		if err != nil {
			reply(w, http.StatusBadRequest, wire.Error{Code: wire.CodeBadConfig, Message: "request is not readable: " + err.Error()})
			return
		}
		// The work goes on when the plugin goes away: half an endpoint helps nobody, and the
		// repeated ADD finds the whole one.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), workTime)
		defer cancel()
		out, err := f(ctx, in)
		if err != nil {
			var we *wire.Error
			if !errors.As(err, &we) {
				we = &wire.Error{Code: wire.CodeUnknown, Message: err.Error()}
			}
			reply(w, http.StatusInternalServerError, we)
			return
		}
		reply(w, http.StatusOK, out)
	})
}

func reply(w http.ResponseWriter, code int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body)
}
