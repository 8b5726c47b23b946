// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"
)

type row struct {
	key   int
	value string
	group string
}

func newTestTable() (*DB, *Table[int, row]) {
	db := New()
	return db, NewTable(db, "test", func(r row) int { return r.key },
		Index[row]{Name: "group", Of: func(r row) []string { return []string{r.group} }})
}

// TestTableAgainstMap performs random operations on a table and on a plain map and compares them,
// while cursors that read at random times keep copies of their own up to date.
func TestTableAgainstMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		db, table := newTestTable()
		model := map[int]row{}
		type reader struct {
			cursor *Cursor[int, row]
			copy   map[int]row
		}
		var readers []*reader
		catchUp := func(r *reader) {
			changes, _ := r.cursor.Next()
			seen := map[int]bool{}
			for _, c := range changes {
				if seen[c.Key] {
					t.Fatalf("key %d twice in one Next", c.Key)
				}
				seen[c.Key] = true
				if c.Deleted {
					delete(r.copy, c.Key)
				} else {
					r.copy[c.Key] = c.Row
				}
			}
			if !maps.Equal(r.copy, model) {
				t.Fatalf("cursor has %v, want %v", r.copy, model)
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) {
				w := db.WriteTxn()
				before := maps.Clone(model)
				watch := table.Watch()
				for range rapid.IntRange(1, 40).Draw(t, "operations") {
					k := rapid.IntRange(0, 30).Draw(t, "key")
					if rapid.Bool().Draw(t, "delete") {
						table.Delete(w, k)
						delete(model, k)
						continue
					}
					r := row{k, rapid.StringMatching(`[a-z]`).Draw(t, "value"), fmt.Sprint(k % 3)}
					table.Insert(w, r)
					model[k] = r
				}
				if table.Len() != len(before) {
					t.Fatal("rows visible before commit")
				}
				w.Commit()
				if !maps.Equal(before, model) {
					select {
					case <-watch:
					default:
						t.Fatal("watch channel did not close")
					}
				}
			},
			"new cursor": func(*rapid.T) {
				if len(readers) < 4 {
					readers = append(readers, &reader{table.Changes(), map[int]row{}})
				}
			},
			"read": func(t *rapid.T) {
				if len(readers) > 0 {
					catchUp(readers[rapid.IntRange(0, len(readers)-1).Draw(t, "reader")])
				}
			},
			"close": func(t *rapid.T) {
				if len(readers) > 0 {
					readers[0].cursor.Close()
					readers = readers[1:]
				}
			},
			"": func(t *rapid.T) {
				if got := maps.Collect(table.All()); !maps.Equal(got, model) {
					t.Fatalf("table has %v, want %v", got, model)
				}
				groups := 0
				for g := range 3 {
					rows := table.ByIndex("group", fmt.Sprint(g))
					groups += len(rows)
					for _, r := range rows {
						if model[r.key] != r {
							t.Fatalf("index gives %v, want %v", r, model[r.key])
						}
					}
				}
				if groups != len(model) || table.Len() != len(model) {
					t.Fatalf("%d rows in the index, %d counted, want %d", groups, table.Len(), len(model))
				}
			},
		})
		for _, r := range readers {
			catchUp(r)
		}
	})
}

// TestLogStaysBounded creates and deletes rows with ever new keys: neither the log nor the
// tombstones may grow with the number of changes.
func TestLogStaysBounded(t *testing.T) {
	db, table := newTestTable()
	c := table.Changes()
	for i := range 10000 {
		w := db.WriteTxn()
		table.Insert(w, row{key: i})
		w.Commit()
		w = db.WriteTxn()
		table.Delete(w, i)
		w.Commit()
		c.Next()
	}
	if len(table.log) > 4*logSlack || len(table.rows) > 4*logSlack {
		t.Errorf("%d log entries and %d rows for an empty table", len(table.log), len(table.rows))
	}
}

// TestInitialized follows two sources that get complete one after the other.
func TestInitialized(t *testing.T) {
	db, table := newTestTable()
	if ok, _ := table.Initialized(); !ok {
		t.Fatal("a table without sources is not initialized")
	}
	doneA := table.RegisterInitializer("a")
	w := db.WriteTxn()
	doneA(w)
	if ok, _ := table.Initialized(); ok {
		t.Fatal("initialized before the commit")
	}
	w.Commit()
	doneB := table.RegisterInitializer("b")
	ok, ch := table.Initialized()
	if ok {
		t.Fatal("initialized while b is missing")
	}
	if p := table.Pending(); len(p) != 1 || p[0] != "b" {
		t.Fatalf("pending sources %v, want [b]", p)
	}
	doneB(w)
	doneA(w) // once more does no harm
	w.Commit()
	select {
	case <-ch:
	default:
		t.Fatal("channel did not close")
	}
	if info := db.Tables(); len(info) != 1 || !info[0].Initialized || info[0].Name != "test" {
		t.Fatalf("table info %+v", info)
	}
}
