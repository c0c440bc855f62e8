// HTTP/1.1 over one connection, and connections kept between calls.

package keyhatch

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

const (
	// maxReads is how many connections ask at once; what is over waits. The agent limits the connections of a user.
	maxReads = 32
	// idleTime is how long a connection is kept that nobody uses.
	idleTime = 60 * time.Second
	maxHead  = 16 * 1024
)

// connection is one to the agent. It reads answers with http.ReadResponse and not through http.Transport, which logs
// the first bytes of what comes unasked.
type connection struct {
	net.Conn
	reader *bufio.Reader
	// room bounds what an answer may have.
	room *io.LimitedReader
	// kept is that it has given an answer before: the agent may have ended it since.
	kept  bool
	since time.Time
}

func newConnection(conn net.Conn) *connection {
	room := &io.LimitedReader{R: conn}
	return &connection{Conn: conn, reader: bufio.NewReader(room), room: room}
}

// begin sends a question and reads the head of its answer.
func (c *connection) begin(q *question) (*http.Response, error) {
	c.room.N = maxHead + q.limit
	// An agent that refuses a connection answers and ends it without reading: that answer counts.
	if _, err := c.Write(q.bytes()); err != nil && !errors.Is(err, syscall.EPIPE) {
		return nil, c.failure(q, err)
	}
	response, err := http.ReadResponse(c.reader, nil)
	if err != nil {
		return nil, c.failure(q, err)
	}
	unframed := response.ContentLength < 0 && len(response.TransferEncoding) == 0
	if response.ProtoMajor != 1 || response.ProtoMinor != 1 || response.StatusCode < 200 || unframed {
		return nil, notAnAnswer("it is not HTTP/1.1 with a length")
	}
	if response.ContentLength > q.limit {
		return nil, notAnAnswer("its body is too large")
	}
	return response, nil
}

// exchange sends a question and reads its whole answer.
func (c *connection) exchange(q *question) (*http.Response, []byte, error) {
	response, err := c.begin(q)
	if err != nil {
		return nil, nil, err
	}
	// Large enough from the start, so that no smaller copy is left behind.
	body := bytes.NewBuffer(make([]byte, 0, max(response.ContentLength, 0)+bytes.MinRead))
	_, err = body.ReadFrom(io.LimitReader(response.Body, q.limit+1))
	switch {
	case err != nil:
		return nil, nil, c.failure(q, err)
	case int64(body.Len()) > q.limit:
		return nil, nil, notAnAnswer("its body is too large")
	case c.reader.Buffered() > 0:
		return nil, nil, notAnAnswer("more bytes came than the answer has")
	}
	return response, body.Bytes(), nil
}

// wipe overwrites what was read, so that a kept connection holds no value.
func (c *connection) wipe() {
	c.reader.Reset(zeros{})
	_, _ = c.reader.Peek(c.reader.Size())
	c.reader.Reset(c.room)
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

var (
	// errEnded is that the connection ended before the answer did.
	errEnded = errors.New("the connection has ended")
	// errStale is that a kept connection ended before an answer began.
	errStale = errors.New("the kept connection has ended")
)

// failure sorts what went wrong. What net/http says is not passed on: it may quote the answer.
func (c *connection) failure(q *question, err error) error {
	var system syscall.Errno
	ended := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &system)
	var network net.Error
	switch {
	case errors.As(err, &network) && network.Timeout():
		return context.DeadlineExceeded
	case c.room.N <= 0:
		return notAnAnswer("it is too large")
	case ended && c.kept && c.room.N == maxHead+q.limit:
		return errStale
	case ended:
		return errEnded
	}
	return notAnAnswer("it is not HTTP")
}

// pool keeps connections between calls.
type pool struct {
	dial func(context.Context) (net.Conn, error)
	// slots has one element for each connection in use.
	slots chan struct{}

	mu    sync.Mutex
	idle  []*connection
	sweep *time.Timer
}

func newPool(dial func(context.Context) (net.Conn, error)) *pool {
	return &pool{dial: dial, slots: make(chan struct{}, maxReads)}
}

// take gives a connection, to be given back with put. It waits while too many are in use.
func (p *pool) take(ctx context.Context) (*connection, error) {
	select {
	case p.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if kept := p.pop(); kept != nil {
		return kept, nil
	}
	conn, err := p.dial(ctx)
	if err != nil {
		<-p.slots
		return nil, err
	}
	return newConnection(conn), nil
}

// pop gives the connection that was used last.
func (p *pool) pop() *connection {
	p.mu.Lock()
	defer p.mu.Unlock()
	last := len(p.idle) - 1
	if last < 0 {
		return nil
	}
	kept := p.idle[last]
	p.idle = p.idle[:last]
	return kept
}

// put takes a connection back, to be kept where it is good for another question.
func (p *pool) put(c *connection, good bool) {
	defer func() { <-p.slots }()
	c.wipe()
	if !good {
		c.Close()
		return
	}
	c.kept, c.since = true, time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
	if p.sweep == nil {
		p.sweep = time.AfterFunc(idleTime, func() { p.closeIdle(idleTime) })
	}
}

// closeIdle closes what nobody has used for so long.
func (p *pool) closeIdle(unused time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := 0
	for old < len(p.idle) && time.Since(p.idle[old].since) >= unused {
		p.idle[old].Close()
		old++
	}
	p.idle = append([]*connection(nil), p.idle[old:]...)
	if p.sweep != nil && len(p.idle) == 0 {
		p.sweep.Stop()
		p.sweep = nil
	} else if p.sweep != nil {
		p.sweep.Reset(idleTime)
	}
}
