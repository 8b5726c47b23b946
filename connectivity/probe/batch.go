// SPDX-License-Identifier: Apache-2.0

package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Batch reads probes from r, one JSON object after the other or a list of them, runs up to parallel
// of them at a time and writes every result as a line of JSON as soon as it is there. It starts
// each probe when it has been read, so that r may be a conversation. It returns when r has ended
// and every probe is answered, or when ctx ends.
func Batch(ctx context.Context, r io.Reader, w io.Writer, parallel int) error {
	if parallel <= 0 {
		parallel = 64
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		slot = make(chan struct{}, parallel)
		enc  = json.NewEncoder(w)
		open conns
		werr error
	)
	defer open.close()
	defer wg.Wait()
	next, err := decodeProbes(r)
	if err != nil {
		return err
	}
	for {
		p, err := next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read a probe: %w", err)
		}
		select {
		case slot <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		wg.Go(func() {
			defer func() { <-slot }()
			res := runWith(ctx, p, &open)
			mu.Lock()
			defer mu.Unlock()
			werr = errors.Join(werr, enc.Encode(res))
		})
	}
	wg.Wait()
	return werr
}

// decodeProbes returns a function that yields probes until io.EOF.
func decodeProbes(r io.Reader) (func() (Probe, error), error) {
	br := bufio.NewReader(r)
	list := false
	for {
		b, err := br.ReadByte()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if b == ' ' || b == '\n' || b == '\t' || b == '\r' {
			continue
		}
		list = b == '['
		_ = br.UnreadByte()
		break
	}
	dec := json.NewDecoder(br)
	dec.DisallowUnknownFields()
	if list {
		if _, err := dec.Token(); err != nil {
			return nil, err
		}
	}
	return func() (Probe, error) {
		var p Probe
		if list && !dec.More() {
			return p, io.EOF
		}
		err := dec.Decode(&p)
		return p, err
	}, nil
}
