package keyhatch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// restartTime is how long a read waits for an agent that restarts.
	restartTime = 5 * time.Second
	firstPause  = 10 * time.Millisecond
	longPause   = 250 * time.Millisecond

	// maxReads is how many connections ask at once; what is over waits. The agent limits the connections of a user.
	maxReads = 32
	idleTime = 60 * time.Second
	maxHead  = 16 * 1024

	jsonType   = "application/json"
	eventsType = "text/event-stream"
)

// transport sends requests to the agent. It is a func and no struct, so that no printer of memory walks into its read
// buffers, where values have been.
type transport func(*http.Request) (*http.Response, error)

// RoundTrip makes it an http.RoundTripper.
func (t transport) RoundTrip(request *http.Request) (*http.Response, error) { return t(request) }

func newTransport(d *dialer, maxConns int) (send transport, closeIdle func()) {
	inner := &http.Transport{
		DialContext:            d.dial,
		MaxConnsPerHost:        maxConns,
		MaxIdleConnsPerHost:    maxReads,
		IdleConnTimeout:        idleTime,
		MaxResponseHeaderBytes: maxHead,
		DisableCompression:     true,
	}
	return inner.RoundTrip, inner.CloseIdleConnections
}

// question is one request.
type question struct {
	// what stands in errors for what was asked.
	what   string
	path   string
	query  [][2]string
	header map[string]string
	body   []byte
	// limit is the largest body that the answer may have.
	limit int64
	// unready takes a 503 for an answer.
	unready bool
}

func (q *question) request(ctx context.Context) (*http.Request, error) {
	method := http.MethodGet
	var body io.Reader
	if q.body != nil {
		method, body = http.MethodPost, bytes.NewReader(q.body)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://keyhatch", body)
	if err != nil {
		return nil, err
	}
	request.URL.Path = q.path
	request.URL.RawQuery = encode(q.query)
	request.Header.Set("Accept", jsonType)
	for name, value := range q.header {
		request.Header.Set(name, value)
	}
	if q.body != nil {
		request.Header.Set("Content-Type", jsonType)
		// Without a value it is not sent, and tells net/http that this POST is but a read.
		request.Header["Idempotency-Key"] = nil
	}
	return request, nil
}

// encode writes a query with %20 for a blank: to the agent + is a plus.
func encode(query [][2]string) string {
	pairs := make([]string, len(query))
	for at, pair := range query {
		pairs[at] = pair[0] + "=" + strings.ReplaceAll(url.QueryEscape(pair[1]), "+", "%20")
	}
	return strings.Join(pairs, "&")
}

// ask sends a question and gives the body of its answer; it is repeated while the agent restarts.
func (c *Client) ask(ctx context.Context, q *question) (body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err = patiently(ctx, func() error {
		var response *http.Response
		response, body, err = c.exchange(ctx, q)
		if err == nil && !q.takes(response.StatusCode) {
			err = refusal(q.what, response, body)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return body, nil
}

func (q *question) takes(status int) bool {
	return status == http.StatusOK || (q.unready && status == http.StatusServiceUnavailable)
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

// exchange sends a question once and reads the whole answer.
func (c *Client) exchange(ctx context.Context, q *question) (*http.Response, []byte, error) {
	response, begun, err := c.begin(ctx, c.reads, q)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	body, err := readBody(response, q.limit)
	if err != nil {
		return nil, nil, c.failed(ctx, err, begun)
	}
	return response, body, nil
}

// begin sends a question and reads the head of its answer.
func (c *Client) begin(ctx context.Context, send transport, q *question) (*http.Response, *atomic.Bool, error) {
	begun := new(atomic.Bool)
	traced := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotFirstResponseByte: func() { begun.Store(true) },
	})
	request, err := q.request(traced)
	if err != nil {
		return nil, nil, notAnAnswer("the request cannot be made")
	}
	response, err := send(request)
	if err != nil {
		return nil, nil, c.failed(ctx, err, begun)
	}
	unframed := response.ContentLength < 0 && len(response.TransferEncoding) == 0
	if response.ProtoMajor != 1 || response.ProtoMinor != 1 || unframed {
		response.Body.Close()
		return nil, nil, notAnAnswer("it is not HTTP/1.1 with a length")
	}
	return response, begun, nil
}

var errTooLarge = notAnAnswer("its body is too large")

func readBody(response *http.Response, limit int64) ([]byte, error) {
	if response.ContentLength > limit {
		return nil, errTooLarge
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	if err == nil && int64(len(body)) > limit {
		return nil, errTooLarge
	}
	return body, err
}

// failed is the error of an exchange that broke off. What net/http says is not passed on where it may quote the answer.
func (c *Client) failed(ctx context.Context, err error, begun *atomic.Bool) error {
	var known *Error
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return ctx.Err()
	case ctx.Err() != nil:
		return c.timedOut()
	case errors.As(err, &known):
		return known
	case !begun.Load() || connectionEnded(err):
		return c.lost()
	}
	return notAnAnswer("it is not HTTP")
}

func connectionEnded(err error) bool {
	var system syscall.Errno
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &system)
}

func (c *Client) timedOut() *Error {
	return &Error{
		Kind: ErrTimedOut, detail: fmt.Sprintf("the agent at %s did not answer in time", c.dialer.where()),
		cause: context.DeadlineExceeded,
	}
}

// lost is the error of a connection that ended before an answer did.
func (c *Client) lost() *Error {
	detail := fmt.Sprintf("cannot reach the agent at %s: it ended the connection", c.dialer.where())
	return &Error{Kind: ErrUnreachable, detail: detail, cause: io.ErrUnexpectedEOF, restarting: true}
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
