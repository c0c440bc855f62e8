// New values, told as they come.

package keyhatch

import "context"

// OnRotate calls tell with each new value of a secret, or of one field of it: "NAME#field". It returns once the secret
// is watched, and goes on until ctx ends, over restarts of the agent and over a time without the grant too. Calls of
// tell come one after the other, from a goroutine of their own.
func (c *Client) OnRotate(ctx context.Context, name string, tell func(*Secret)) error {
	wanted, err := parseWanted(name)
	if err != nil {
		return err
	}
	ctx, end := c.during(ctx)
	rotation := &rotation{client: c, ctx: ctx, wanted: wanted, tell: tell, begun: make(chan struct{})}
	follow := &follower{
		client: c, names: []string{wanted.name}, told: rotation.told, lost: func() {}, hopeful: true,
	}
	limit, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	stream, err := follow.start(ctx, limit)
	if err != nil {
		end()
		return err
	}
	go func() {
		defer end()
		_ = follow.run(ctx, stream)
	}()
	// What stands at the first event is what later ones are compared with.
	select {
	case <-rotation.begun:
		return nil
	case <-limit.Done():
		defer end()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return c.timedOut()
	}
}

// rotation is what one OnRotate knows.
type rotation struct {
	client *Client
	ctx    context.Context
	wanted wanted
	tell   func(*Secret)
	// begun is closed at the first event.
	begun   chan struct{}
	started bool
	// version is that of the value told last; at first, of the value that stood.
	version string
}

func (r *rotation) told(change Change) error {
	if !r.started {
		r.started, r.version = true, change.Version
		close(r.begun)
		return nil
	}
	if change.Version == "" || change.Version == r.version {
		return nil
	}
	secret, err := r.client.read(r.ctx, r.wanted, "")
	if err != nil {
		return err
	}
	if secret.version != r.version {
		r.version = secret.version
		r.tell(secret)
	}
	return nil
}
