// SPDX-License-Identifier: Apache-2.0

package standin

import (
	"bufio"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	validation "k8s.io/apimachinery/pkg/util/validation/field"
)

// bookmarkEvery is how often a watch that wants bookmarks gets one.
const bookmarkEvery = time.Minute

// wish is the query of a list or a watch.
type wish struct {
	selection
	watch, bookmarks, whole bool
	after                   uint64
	timeout                 time.Duration // 0: none
}

func (s *Server) wishOf(q url.Values, t target) (wish, error) {
	out := wish{selection: selection{namespace: t.namespace}}
	var err error
	if out.labels, err = labels.Parse(q.Get("labelSelector")); err != nil {
		return out, apierrors.NewBadRequest(err.Error())
	}
	if out.fields, err = fields.ParseSelector(q.Get("fieldSelector")); err != nil {
		return out, apierrors.NewBadRequest(err.Error())
	}
	for _, r := range out.fields.Requirements() {
		switch {
		case r.Field == "metadata.name", r.Field == "metadata.namespace", r.Field == "spec.nodeName" && t.kind.name == "Pod",
			r.Field == "spec.clusterIP" && t.kind.name == "Service":
		default:
			return out, apierrors.NewBadRequest("field label not supported: " + r.Field)
		}
	}
	on := func(key string) bool { v, err := strconv.ParseBool(q.Get(key)); return err == nil && v }
	out.watch, out.bookmarks, out.whole = on("watch"), on("allowWatchBookmarks"), on("sendInitialEvents")
	if v := q.Get("resourceVersion"); v != "" {
		if out.after, err = strconv.ParseUint(v, 10, 64); err != nil {
			return out, apierrors.NewBadRequest("resourceVersion: " + err.Error())
		}
	}
	if v := q.Get("timeoutSeconds"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			return out, apierrors.NewBadRequest("timeoutSeconds: not a number of seconds")
		}
		out.timeout = time.Duration(n) * time.Second
	}
	if out.whole && s.o.NoStreams {
		// What makes clients fall back to a list.
		return out, apierrors.NewInvalid(schema.GroupKind{Group: "meta.k8s.io", Kind: "ListOptions"}, "", validation.ErrorList{
			validation.Forbidden(validation.NewPath("sendInitialEvents"), "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"),
		})
	}
	return out, nil
}

func (s *Server) serveMany(w http.ResponseWriter, r *http.Request, t target, f form) error {
	q, err := s.wishOf(r.URL.Query(), t)
	if err != nil {
		return err
	}
	if q.watch {
		return s.serveWatch(w, r, t, f, q)
	}
	objs, at := s.store.list(t.kind, q.selection)
	body, err := s.store.encodeList(f, t.kind, objs, at)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", f.contentType(false))
	_, _ = w.Write(body) // the client is gone
	return nil
}

// stream is one watch as it is sent.
type stream struct {
	s    *Server
	kind kind
	f    form
	q    wish
	out  *bufio.Writer
	w    http.Flusher
}

func (st *stream) send(event string, o *object) error {
	frame, err := st.s.store.frame(st.f, event, o)
	if err != nil {
		return err
	}
	_, err = st.out.Write(frame)
	return err
}

func (st *stream) flush() error {
	if err := st.out.Flush(); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	st.w.Flush()
	return nil
}

func (st *stream) bookmark(version uint64, initial bool) error {
	o, err := st.kind.bookmark(version, initial)
	if err != nil {
		return err
	}
	return st.send("BOOKMARK", o)
}

// changes sends what is selected of them. Each is noted right before its bytes leave.
func (st *stream) changes(changes []*Change) (unsent []*Change, err error) {
	for i, c := range changes {
		if event, o := st.q.of(c); event != "" {
			frame, err := st.s.store.frame(st.f, event, o)
			if err != nil {
				return changes[i:], err
			}
			c.note(st.s.o.Clock())
			if _, err := st.out.Write(frame); err != nil {
				return changes[i:], err
			}
			if err := st.flush(); err != nil {
				return changes[i:], err
			}
		}
		c.passed()
	}
	return nil, nil
}

// serveWatch sends events until the client goes, its time is over or the server closes.
func (s *Server) serveWatch(w http.ResponseWriter, r *http.Request, t target, f form, q wish) error {
	flusher, ok := w.(http.Flusher)
	if !ok {
		return fmt.Errorf("this connection cannot stream")
	}
	cur, objs, err := s.store.follow(t.kind, q.after, q.whole, q.selection)
	if err != nil {
		return err
	}
	var unsent []*Change
	defer func() { cur.end(unsent) }()
	w.Header().Set("Content-Type", f.contentType(true))
	w.WriteHeader(http.StatusOK)
	st := &stream{s: s, kind: t.kind, f: f, q: q, out: bufio.NewWriterSize(w, 64<<10), w: flusher}
	for _, o := range objs {
		if st.send("ADDED", o) != nil {
			return nil // the client is gone
		}
	}
	if q.whole && q.bookmarks && st.bookmark(cur.at, true) != nil {
		return nil
	}
	if st.flush() != nil {
		return nil
	}
	var over <-chan time.Time
	if q.timeout > 0 {
		timer := time.NewTimer(q.timeout)
		defer timer.Stop()
		over = timer.C
	}
	marks := time.NewTicker(bookmarkEvery)
	defer marks.Stop()
	for {
		changes, at, changed := cur.next()
		if unsent, err = st.changes(changes); err != nil {
			return nil
		}
		select {
		case <-changed:
		case <-marks.C:
			if q.bookmarks && (st.bookmark(at, false) != nil || st.flush() != nil) {
				return nil
			}
		case <-r.Context().Done():
			return nil
		case <-over:
			return nil
		case <-s.quit:
			return nil
		}
	}
}
