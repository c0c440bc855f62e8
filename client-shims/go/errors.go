// What can go wrong, in kinds that a program can tell apart. No error ever holds a value.

package keyhatch

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Kind tells errors apart: with errors.Is(err, keyhatch.ErrDenied), or in a switch over [Error.Kind].
type Kind string

// What the agent answered.
const (
	// ErrDenied is that the policy does not allow it, or that there is no such secret: the agent gives the same
	// answer for both.
	ErrDenied Kind = "Denied"
	// ErrQuarantined is that this bot is quarantined until an operator releases it.
	ErrQuarantined Kind = "Quarantined"
	// ErrNotFound is that there is no such secret, version or field; it is only told to a bot that may read or list
	// the name.
	ErrNotFound Kind = "NotFound"
	// ErrSealed is that the agent holds no values until an operator unseals it.
	ErrSealed Kind = "Sealed"
	// ErrUnavailable is that the source has nothing to serve, or that no audit record can be kept.
	ErrUnavailable Kind = "Unavailable"
	// ErrRateLimited is that there were too many requests; see [Error.RetryAfter].
	ErrRateLimited Kind = "RateLimited"
	// ErrBadRequest is that the agent does not understand the request.
	ErrBadRequest Kind = "BadRequest"
	// ErrUpstreamFailed is that the upstream of a route could not be asked, or gave no answer that can be passed on.
	ErrUpstreamFailed Kind = "UpstreamFailed"
	// ErrUpstreamTimeout is that the upstream of a route was silent for too long.
	ErrUpstreamTimeout Kind = "UpstreamTimeout"
	// ErrFailed is any other refusal, such as a fault of the agent's own.
	ErrFailed Kind = "Failed"
)

// What went wrong on the way, or here.
const (
	// ErrRefused is that another user than the agent's listens at the socket, so that nothing was sent.
	ErrRefused Kind = "Refused"
	// ErrUnreachable is that nobody listens at the socket, or that the connection broke.
	ErrUnreachable Kind = "Unreachable"
	// ErrTimedOut is that the agent did not answer in time; the error is a context.DeadlineExceeded too.
	ErrTimedOut Kind = "TimedOut"
	// ErrProtocol is that the answer is not one that an agent gives.
	ErrProtocol Kind = "Protocol"
	// ErrName is that the text is not a secret's name, so that nothing was sent.
	ErrName Kind = "Name"
	// ErrNoField is that the value is not a JSON object with this field.
	ErrNoField Kind = "NoField"
)

// Error makes a Kind a target for errors.Is.
func (k Kind) Error() string { return "keyhatch: " + string(k) }

// Error is why a call did not give what it was asked for. It never holds a value.
type Error struct {
	// Kind tells errors apart.
	Kind Kind
	// Code is the agent's stable word for it, such as "denied"; empty where it was not the agent that refused.
	Code string
	// Status is the HTTP status; 0 where there was no answer.
	Status int
	// RequestID leads to the audit record of the request.
	RequestID string
	// RetryAfter is how long to wait before asking again, where the agent said so.
	RetryAfter time.Duration

	detail string
	cause  error
	// restarting is that the agent may be about to come back: a read is repeated.
	restarting bool
}

// Error says what failed, on what, and what to do, in one line.
func (e *Error) Error() string {
	text := "keyhatch: " + e.detail
	switch {
	case e.RequestID != "":
		text += fmt.Sprintf(" (%s, request %s)", e.Code, e.RequestID)
	case e.Code != "":
		text += fmt.Sprintf(" (%s)", e.Code)
	case e.Status != 0:
		text += fmt.Sprintf(" (status %d)", e.Status)
	}
	return text
}

// Is says whether target is the error's Kind.
func (e *Error) Is(target error) bool {
	kind, ok := target.(Kind)
	return ok && kind == e.Kind
}

// Unwrap gives what the system said, where it said anything.
func (e *Error) Unwrap() error { return e.cause }

// Temporary says whether the same request may well succeed a little later.
func (e *Error) Temporary() bool {
	switch e.Kind {
	case ErrSealed, ErrUnavailable, ErrRateLimited, ErrUpstreamFailed, ErrUpstreamTimeout, ErrUnreachable, ErrTimedOut:
		return true
	case ErrFailed:
		return e.Status >= 500
	}
	return false
}

// The kinds of the agent's codes; any other code is ErrFailed.
var codeKinds = map[string]Kind{
	"denied":               ErrDenied,
	"quarantined":          ErrQuarantined,
	"not_found":            ErrNotFound,
	"sealed":               ErrSealed,
	"upstream_unavailable": ErrUnavailable,
	"audit_unavailable":    ErrUnavailable,
	"rate_limited":         ErrRateLimited,
	"upstream_failed":      ErrUpstreamFailed,
	"upstream_timeout":     ErrUpstreamTimeout,
	"bad_request":          ErrBadRequest,
}

// The kinds of answers without a problem document; any other status is ErrFailed.
var statusKinds = map[int]Kind{
	http.StatusForbidden:                   ErrDenied,
	http.StatusNotFound:                    ErrNotFound,
	http.StatusRequestTimeout:              ErrUnavailable,
	http.StatusServiceUnavailable:          ErrUnavailable,
	http.StatusTooManyRequests:             ErrRateLimited,
	http.StatusBadRequest:                  ErrBadRequest,
	http.StatusRequestEntityTooLarge:       ErrBadRequest,
	http.StatusRequestHeaderFieldsTooLarge: ErrBadRequest,
}

// refusal is the error that an answer tells of, from its problem document (RFC 9457).
func refusal(what string, response *http.Response, body []byte) *Error {
	var problem struct {
		Title     string `json:"title"`
		Code      string `json:"code"`
		Detail    string `json:"detail"`
		RequestID string `json:"request_id"`
	}
	refused := &Error{
		Status:     response.StatusCode,
		detail:     what + ": the answer says no more than its status",
		restarting: response.StatusCode == http.StatusServiceUnavailable && response.Close,
	}
	if seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 31); err == nil {
		refused.RetryAfter = time.Duration(seconds) * time.Second
	}
	kind, ok := statusKinds[refused.Status]
	if json.Unmarshal(body, &problem) == nil && problem.Code != "" {
		kind, ok = codeKinds[problem.Code]
		if problem.Detail == "" {
			problem.Detail = problem.Title
		}
		refused.Code, refused.RequestID = oneLine(problem.Code), oneLine(problem.RequestID)
		refused.detail = what + ": " + oneLine(problem.Detail)
	}
	if !ok {
		kind = ErrFailed
	}
	refused.Kind = kind
	return refused
}

func notAnAnswer(what string) *Error {
	return &Error{Kind: ErrProtocol, detail: "the answer is not one of a Keyhatch agent: " + what}
}

// oneLine makes text fit for a terminal or a log: a control character cannot start a line or an escape sequence.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}
