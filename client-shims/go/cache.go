// Values held in this process, for a client that was asked to.

package keyhatch

import (
	"context"
	"sync"
)

// cache holds values in this process. Each secret in it has a watch of its own, and is given out only while that is
// open and says that the value is the current one.
type cache struct {
	client *Client

	mu      sync.Mutex
	entries map[string]*entry
}

// entry is one secret of the cache.
type entry struct {
	// version is what the watch says is served; empty while it does not say.
	version string
	// values holds that version, by what of it was asked for.
	values map[wanted]*Secret
}

func newCache(client *Client) *cache {
	return &cache{client: client, entries: map[string]*entry{}}
}

// get gives the current value, where it is known to be that.
func (c *cache) get(wanted wanted) *Secret {
	c.mu.Lock()
	defer c.mu.Unlock()
	if entry := c.entries[wanted.name]; entry != nil {
		return entry.values[wanted]
	}
	return nil
}

// keep takes a value that the agent gave. A first one starts the watch, and is held from the next read on.
func (c *cache) keep(wanted wanted, secret *Secret) {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := c.entries[wanted.name]
	switch {
	case c.client.life.Err() != nil:
	case held == nil:
		held = &entry{}
		c.entries[wanted.name] = held
		go c.watch(wanted.name, held)
	case held.version == secret.version && !secret.stale:
		held.values[wanted] = secret
	}
}

// watch keeps an entry current for as long as the client lives.
func (c *cache) watch(name string, held *entry) {
	ctx := c.client.life
	follow := &follower{client: c.client, names: []string{name}, hopeful: true}
	follow.lost = func() {
		c.stands(held, "")
		// A stream that resumes does not say again what stands.
		follow.lastID = ""
	}
	follow.told = func(change Change) error {
		c.stands(held, change.Version)
		return nil
	}
	limit, cancel := context.WithTimeout(ctx, c.client.timeout)
	defer cancel()
	stream, err := follow.start(ctx, limit)
	if err != nil {
		stream, err = follow.reopen(ctx, err)
	}
	if err == nil {
		_ = follow.run(ctx, stream)
	}
}

// stands forgets the values of every other version.
func (c *cache) stands(held *entry, version string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if version == "" || version != held.version {
		held.version, held.values = version, map[wanted]*Secret{}
	}
}
