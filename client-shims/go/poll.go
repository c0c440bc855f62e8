// Long polls: a read that waits until there is another version.

package keyhatch

import (
	"context"
	"errors"
	"regexp"
	"time"
)

// aVersion is what an entity tag can hold (RFC 9110, section 8.8.3), so that no version can add a header.
var aVersion = regexp.MustCompile(`^[!#-~]+$`)

// errUnchanged is that the agent has answered 304.
var errUnchanged = errors.New("the version is still the same")

// WaitForChange gives the value of a secret, or of one field of it, once its version is not the given one; nil where it
// still is after wait. It goes on over a restart of the agent.
func (c *Client) WaitForChange(ctx context.Context, name, version string, wait time.Duration) (*Secret, error) {
	wanted, err := parseWanted(name)
	if err != nil {
		return nil, err
	}
	if !aVersion.MatchString(version) {
		return nil, errors.New("keyhatch: this is not a version that an agent gives")
	}
	end := time.Now().Add(wait)
	for {
		asked := time.Now()
		q := wanted.question()
		// The agent counts whole seconds.
		q.known, q.wait = version, max(0, end.Sub(asked)+time.Second-1).Truncate(time.Second)
		secret, err := c.valueOf(ctx, wanted, q)
		if !errors.Is(err, errUnchanged) {
			return secret, err
		}
		now := time.Now()
		if !now.Before(end) {
			return nil, nil
		}
		// It may have waited less long than it was asked to. One that does not wait at all is asked once a second.
		if err := sleep(ctx, min(asked.Add(time.Second).Sub(now), end.Sub(now))); err != nil {
			return nil, err
		}
	}
}
