// A watch that outlives its connections.

package keyhatch

import (
	"context"
	"errors"
	"time"
)

const (
	firstReopen = 100 * time.Millisecond
	longReopen  = 10 * time.Second
	// hopefulPause is before one that goes on after refusals asks again: it must not fill the audit log.
	hopefulPause = 60 * time.Second
	// steady is how long a stream holds before the pauses start anew.
	steady = 30 * time.Second
)

// ChangeKind is what happened to a watched secret.
type ChangeKind string

// What can happen to a watched secret.
const (
	// Current is how it stands as the watch begins.
	Current ChangeKind = "current"
	// Rotated is that a new version is served.
	Rotated ChangeKind = "rotated"
	// Removed is that it is gone.
	Removed ChangeKind = "removed"
)

// Change is that something happened to a watched secret.
type Change struct {
	Kind ChangeKind
	Name string
	// Version is what is served now; empty where there is no such secret.
	Version string
}

// Watcher tells what happens to some secrets.
type Watcher struct {
	changes chan Change
	err     error
}

// Watch tells what happens to these secrets from now on, until ctx ends. It connects again where the connection is
// lost, and resumes where it was. It is over after an error that waiting does not heal, such as [ErrDenied].
//
//	watcher, err := client.Watch(ctx, "app/db")
//	if err != nil {
//		return err
//	}
//	for change := range watcher.Changes() {
//		log.Print(change.Kind, " ", change.Name)
//	}
//	return watcher.Err()
func (c *Client) Watch(ctx context.Context, names ...string) (*Watcher, error) {
	ctx, end := c.during(ctx)
	watcher := &Watcher{changes: make(chan Change)}
	follow := &follower{client: c, names: names, lost: func() {}}
	follow.told = func(change Change) error {
		select {
		case watcher.changes <- change:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	limit, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	stream, err := follow.start(ctx, limit)
	if err != nil {
		end()
		return nil, err
	}
	go func() {
		defer end()
		defer close(watcher.changes)
		watcher.err = follow.run(ctx, stream)
	}()
	return watcher, nil
}

// Changes gives each change as it happens. It is closed when the watch is over.
func (w *Watcher) Changes() <-chan Change { return w.changes }

// Err says why the watch is over, once Changes is closed: the context's error, or the agent's refusal.
func (w *Watcher) Err() error { return w.err }

// during gives a context that ends with ctx, and with the client.
func (c *Client) during(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, end := context.WithCancel(ctx)
	stop := context.AfterFunc(c.life, end)
	return ctx, func() { stop(); end() }
}

// follower keeps a watch open, over restarts of the agent too.
type follower struct {
	client *Client
	names  []string
	// told takes each change. After an error of it, all is told again.
	told func(Change) error
	// lost is called when a stream has ended.
	lost func()
	// hopeful goes on after a refusal.
	hopeful bool

	lastID string
	pause  time.Duration
}

// start opens the first stream, with the patience of a read.
func (f *follower) start(ctx, limit context.Context) (opened *stream, err error) {
	if len(f.names) == 0 {
		return nil, &Error{Kind: ErrName, detail: "a watch needs at least one secret name"}
	}
	for _, name := range f.names {
		if err := checkName(name); err != nil {
			return nil, err
		}
	}
	err = patiently(limit, func() error {
		opened, err = f.client.openStream(ctx, limit, f.names, "")
		return err
	})
	return opened, err
}

// run follows one stream after the other, until ctx ends or the agent refuses.
func (f *follower) run(ctx context.Context, open *stream) error {
	for {
		since := time.Now()
		err := f.follow(open)
		open.close()
		f.lost()
		if time.Since(since) > steady {
			f.pause = 0
		}
		if open, err = f.reopen(ctx, err); err != nil {
			return err
		}
	}
}

// follow passes on what one stream tells, and gives the error that ended it.
func (f *follower) follow(open *stream) error {
	for {
		event, err := open.next()
		if err != nil {
			return err
		}
		if change, ok := event.change(); ok {
			if err := f.told(change); err != nil {
				f.lastID = ""
				return err
			}
		}
		if event.hasID {
			f.lastID = event.id
		}
	}
}

// reopen opens the stream again that err has ended, after a pause.
func (f *follower) reopen(ctx context.Context, err error) (*stream, error) {
	for {
		var known *Error
		if !errors.As(err, &known) || !(f.hopeful || known.Temporary()) {
			return nil, err
		}
		if err := sleep(ctx, f.next(known)); err != nil {
			return nil, err
		}
		limit, cancel := context.WithTimeout(ctx, f.client.timeout)
		var open *stream
		open, err = f.client.openStream(ctx, limit, f.names, f.lastID)
		cancel()
		if err == nil {
			return open, nil
		}
	}
}

// next is the pause after err: twice as long each time.
func (f *follower) next(err *Error) time.Duration {
	f.pause = min(max(2*f.pause, firstReopen), longReopen)
	if !err.Temporary() {
		return hopefulPause
	}
	return max(jittered(f.pause), err.RetryAfter)
}
