// One question and its answer: how it is spelt, repeated and timed.

package keyhatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/url"
	"strings"
	"time"
)

const (
	// restartTime is how long a read waits for an agent that restarts.
	restartTime = 5 * time.Second
	firstPause  = 10 * time.Millisecond
	longPause   = 250 * time.Millisecond

	jsonType   = "application/json"
	eventsType = "text/event-stream"
)

// question is one request. It holds names and versions, never values.
type question struct {
	// what stands in errors for what was asked.
	what  string
	path  string
	query [][2]string
	// accept is the type of the answer, where it is not JSON.
	accept string
	// known is the version that the caller has: the answer comes when it is another one, or after wait.
	known string
	wait  time.Duration
	// lastID is the event to resume after.
	lastID string
	// body makes it a POST; it reads all the same.
	body []byte
	// limit is the largest body that the answer may have.
	limit int64
	// unready takes a 503 for an answer.
	unready bool
}

func (q *question) bytes() []byte {
	method, accept := http.MethodGet, jsonType
	if q.body != nil {
		method = http.MethodPost
	}
	if q.accept != "" {
		accept = q.accept
	}
	var text strings.Builder
	fmt.Fprintf(&text, "%s %s HTTP/1.1\r\nHost: keyhatch\r\nAccept: %s\r\n", method, q.target(), accept)
	if q.known != "" {
		fmt.Fprintf(&text, "If-None-Match: \"%s\"\r\nPrefer: wait=%d\r\n", q.known, int64(q.wait/time.Second))
	}
	if q.lastID != "" {
		fmt.Fprintf(&text, "Last-Event-ID: %s\r\n", q.lastID)
	}
	if q.body != nil {
		fmt.Fprintf(&text, "Content-Type: %s\r\nContent-Length: %d\r\n", jsonType, len(q.body))
	}
	return append([]byte(text.String()+"\r\n"), q.body...)
}

// target is the path with its query, where %20 stands for a blank: to the agent + is a plus.
func (q *question) target() string {
	target, separator := q.path, "?"
	for _, pair := range q.query {
		target += separator + pair[0] + "=" + strings.ReplaceAll(url.QueryEscape(pair[1]), "+", "%20")
		separator = "&"
	}
	return target
}

func (q *question) takes(status int) bool {
	return status == http.StatusOK || (q.unready && status == http.StatusServiceUnavailable)
}

// ask sends a question and gives the body of its answer; it is repeated while the agent restarts.
func (c *Client) ask(ctx context.Context, q *question) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout+q.wait)
	defer cancel()
	err = patiently(ctx, func() error {
		var response *http.Response
		response, body, err = c.exchange(ctx, q)
		switch {
		case err != nil:
		case q.known != "" && response.StatusCode == http.StatusNotModified:
			err = errUnchanged
		case !q.takes(response.StatusCode):
			err = refusal(q.what, response, body)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return body, nil
}

// patiently calls attempt again, with growing pauses, as long as the agent may be restarting.
func patiently(ctx context.Context, attempt func() error) error {
	var until time.Time
	pause := firstPause
	for {
		err := attempt()
		var known *Error
		if !errors.As(err, &known) || !known.restarting {
			return err
		}
		now := time.Now()
		if until.IsZero() {
			until = now.Add(restartTime)
			if deadline, ok := ctx.Deadline(); ok && deadline.Before(until) {
				until = deadline
			}
		}
		wait := jittered(pause)
		if now.Add(wait).After(until) || sleep(ctx, wait) != nil {
			return err
		}
		pause = min(2*pause, longPause)
	}
}

// exchange sends a question and reads its answer, on a kept connection or on a new one where those have ended.
func (c *Client) exchange(ctx context.Context, q *question) (*http.Response, []byte, error) {
	pool := c.pool
	if q.known != "" {
		pool = c.polls
	}
	for {
		conn, err := pool.take(ctx)
		if err != nil {
			return nil, nil, c.failed(ctx, err)
		}
		free := interruptible(ctx, conn)
		response, body, err := conn.exchange(q)
		good := free() && err == nil && !response.Close
		pool.put(conn, good)
		if !errors.Is(err, errStale) {
			return response, body, c.failed(ctx, err)
		}
	}
}

// interruptible has ctx end what the connection waits for, until free is called. That says whether it did not.
func interruptible(ctx context.Context, conn *connection) (free func() bool) {
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	return context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
}

// failed is the error that a caller sees for err.
func (c *Client) failed(ctx context.Context, err error) error {
	var known *Error
	switch {
	case err == nil:
		return nil
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case ctx.Err() != nil || errors.Is(err, context.DeadlineExceeded):
		return c.timedOut()
	case errors.As(err, &known):
		return known
	}
	detail := fmt.Sprintf("cannot reach the agent at %s: it ended the connection", c.dialer.where())
	return &Error{Kind: ErrUnreachable, detail: detail, cause: io.ErrUnexpectedEOF, restarting: true}
}

func (c *Client) timedOut() *Error {
	return &Error{
		Kind: ErrTimedOut, detail: fmt.Sprintf("the agent at %s did not answer in time", c.dialer.where()),
		cause: context.DeadlineExceeded,
	}
}

// jittered is a pause less up to a half by chance: bots that lost an agent do not come back as one.
func jittered(pause time.Duration) time.Duration {
	return pause - time.Duration(rand.Int63n(int64(pause)/2))
}

// sleep gives the context's error where that ends first.
func sleep(ctx context.Context, pause time.Duration) error {
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
