// SPDX-License-Identifier: Apache-2.0

package term

import (
	"fmt"
	"sync"
	"time"
)

// heartbeat is how often a long step says that it is still going where there is no spinner.
const heartbeat = 10 * time.Second

// Step is a piece of work that is going on. On a terminal it is a line with a spinner that is
// replaced by the result; elsewhere one line when it ends and one every 10 s.
type Step struct {
	t     *Term
	title string
	start time.Time
	stop  chan struct{}
	wg    sync.WaitGroup

	mu     sync.Mutex
	detail string
}

// Step starts a step. The caller ends it with Done.
func (t *Term) Step(format string, args ...any) *Step {
	s := &Step{t: t, title: fmt.Sprintf(format, args...), start: time.Now(), stop: make(chan struct{})}
	s.wg.Add(1)
	go s.run()
	return s
}

// Detail sets a few words that are shown behind the title while the step goes on.
func (s *Step) Detail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.detail = fmt.Sprintf(format, args...)
}

func (s *Step) line() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.detail == "" {
		return s.title
	}
	return s.title + ": " + s.detail
}

func (s *Step) run() {
	defer s.wg.Done()
	every := heartbeat
	frames := []string{"⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"}
	if s.t.TTY {
		every = 100 * time.Millisecond
		if !s.t.UTF8 {
			frames = []string{"|", "/", "-", "\\"}
		}
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for i := 0; ; i++ {
		if s.t.TTY {
			fmt.Fprintf(s.t.W, "\r\x1b[K%s %s", s.t.Cyan(frames[i%len(frames)]), s.t.Text(s.line()))
		}
		select {
		case <-s.stop:
			return
		case <-tick.C:
			if !s.t.TTY {
				s.t.Println("⌛ %s (%s)", s.line(), s.elapsed())
			}
		}
	}
}

func (s *Step) elapsed() time.Duration {
	d := time.Since(s.start)
	if d >= 10*time.Second {
		return d.Round(time.Second)
	}
	return d.Round(100 * time.Millisecond)
}

// Done ends the step and prints its result: the title and how long it took, or the title and the
// error's mark. It returns err, so that it can end a function.
func (s *Step) Done(err error) error {
	close(s.stop)
	s.wg.Wait()
	if s.t.TTY {
		fmt.Fprint(s.t.W, "\r\x1b[K")
	}
	if err != nil {
		s.t.Println("%s %s", s.t.Red(s.t.Text("✗")), s.line())
		return err
	}
	s.t.Println("%s %s %s", s.t.Green(s.t.Text("✓")), s.title, s.t.Faint(fmt.Sprintf("(%s)", s.elapsed())))
	return nil
}
