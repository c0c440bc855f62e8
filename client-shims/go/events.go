// Server-sent events out of the answer to a watch.

package keyhatch

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"strings"
)

// maxLine is longer than any line of an agent's stream: a name has at most 512 bytes.
const maxLine = 8 * 1024

// event is one of a stream of server-sent events (WHATWG HTML, section 9.2.6). It never holds a value.
type event struct {
	id    string
	hasID bool
	kind  string
	data  string
}

// stream is an open watch, on a connection of its own.
type stream struct {
	client *Client
	ctx    context.Context
	conn   *connection
	free   func() bool
	lines  *bufio.Scanner
}

// openStream starts a watch of names, after the event lastID where there is one. It is open until ctx ends, and opened
// before limit does.
func (c *Client) openStream(ctx, limit context.Context, names []string, lastID string) (*stream, error) {
	q := &question{what: "watch of " + strings.Join(names, ", "), path: "/v1/watch", limit: maxSmall}
	q.accept, q.lastID = eventsType, lastID
	for _, name := range names {
		q.query = append(q.query, [2]string{"name", name})
	}
	raw, err := c.dialer.dial(limit)
	if err != nil {
		return nil, c.failed(limit, err)
	}
	conn := newConnection(raw)
	free := interruptible(limit, conn)
	response, err := conn.begin(q)
	if err == nil {
		err = streaming(q, response)
	}
	if !free() || err != nil {
		conn.Close()
		return nil, c.failed(limit, err)
	}
	conn.room.N = math.MaxInt64
	lines := bufio.NewScanner(response.Body)
	lines.Buffer(make([]byte, 0, 1024), maxLine)
	return &stream{client: c, ctx: ctx, conn: conn, free: interruptible(ctx, conn), lines: lines}, nil
}

// streaming gives the error of an answer that is no stream of events.
func streaming(q *question, response *http.Response) error {
	if response.StatusCode == http.StatusOK {
		if strings.HasPrefix(response.Header.Get("Content-Type"), eventsType) {
			return nil
		}
		return notAnAnswer("a watch was not answered with events")
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, q.limit))
	if err != nil {
		return errEnded
	}
	return refusal(q.what, response, body)
}

func (s *stream) close() {
	s.free()
	s.conn.Close()
}

// next gives the next event, or why the stream has ended.
func (s *stream) next() (event, error) {
	var next event
	for s.lines.Scan() {
		line := s.lines.Text()
		if line == "" {
			if next.data != "" {
				return next, nil
			}
			next = event{}
			continue
		}
		next.take(line)
		if len(next.data) > maxLine {
			return event{}, notAnAnswer("an event of its stream is too long")
		}
	}
	if errors.Is(s.lines.Err(), bufio.ErrTooLong) {
		return event{}, notAnAnswer("a line of its event stream is too long")
	}
	return event{}, s.client.failed(s.ctx, errEnded)
}

// take adds one line to the event.
func (e *event) take(line string) {
	field, value, _ := strings.Cut(line, ":")
	value = strings.TrimPrefix(value, " ")
	switch field {
	case "event":
		e.kind = value
	case "data":
		if e.data != "" {
			e.data += "\n"
		}
		e.data += value
	case "id":
		// It goes back in a header.
		if !strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r > '~' }) {
			e.id, e.hasID = value, true
		}
	}
}

// change gives what the event tells; false for one that this client does not know.
func (e *event) change() (Change, bool) {
	kind := ChangeKind(e.kind)
	if kind != Current && kind != Rotated && kind != Removed {
		return Change{}, false
	}
	var told struct {
		Name    string `json:"name"`
		Version string `json:"version"`
	}
	if json.Unmarshal([]byte(e.data), &told) != nil || told.Name == "" {
		return Change{}, false
	}
	return Change{Kind: kind, Name: told.Name, Version: told.Version}, true
}
