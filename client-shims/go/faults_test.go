// Servers that do what an agent does at bad moments, or what none does.

package keyhatch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

var ctx = context.Background()

func valueOf(name, value string) func(http.ResponseWriter, *http.Request, int) {
	return func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path != "/v1/watch" {
			answerValue(w, name, "1-ab", value)
			return
		}
		w.Header().Set("Content-Type", eventsType)
		fmt.Fprintf(w, "id: 1-ab\nevent: current\ndata: {\"name\":%q,\"version\":\"1-ab\"}\n\n", name)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	}
}

const goodValue = "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n" +
	`{"name":"a","version":"1","value":"CANARY-fault"} `

func TestAReadIsRepeatedWhileTheAgentRestarts(t *testing.T) {
	for what, first := range map[string]string{
		"ended before an answer": "",
		"ended in the head":      "HTTP/1.1 200 O",
		"ended in the body":      goodValue[:len(goodValue)-9],
		"draining":               "HTTP/1.1 503 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
	} {
		t.Run(what, func(t *testing.T) {
			f := serveBytes(t, first, first, first, goodValue)
			secret, err := f.client(t).Get(ctx, "a")
			must(t, err)
			equal(t, secret.Reveal(), "CANARY-fault")
			equal(t, f.count(), 4)
			batch := serveBytes(t, first, "HTTP/1.1 200 OK\r\nContent-Length: 26\r\n\r\n"+`{"secrets":[],"errors":[]}`)
			_, err = batch.client(t).Batch(ctx, "a")
			must(t, err)
		})
	}
}

func TestAnAgentThatIsNotThereYetIsWaitedFor(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	client := New(WithSocket(socket))
	defer client.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := client.Get(ctx, "a")
		answered <- err
	}()
	// A stale socket file first: refused, not missing.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	stale.SetUnlinkOnClose(false)
	stale.Close()
	must(t, os.Remove(socket))
	listener, err := net.Listen("unix", socket)
	must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answerValue(w, "a", "1", "CANARY")
	})}
	defer server.Close()
	go server.Serve(listener)
	must(t, receive(t, answered))
}

func TestNobodyListens(t *testing.T) {
	dir := shortDir(t)
	client := New(WithSocket(filepath.Join(dir, "s")), WithTimeout(100*time.Millisecond))
	_, err := client.Get(ctx, "a")
	wantError(t, err, ErrUnreachable)
	if !errors.Is(err, syscall.ENOENT) {
		t.Fatalf("%v is not ENOENT", err)
	}
	_, err = client.Watch(ctx, "a")
	wantError(t, err, ErrUnreachable)
	err = client.OnRotate(ctx, "a", func(*Secret) {})
	wantError(t, err, ErrUnreachable)
}

func TestWhatIsNotRepeated(t *testing.T) {
	sealed := `{"title":"Sealed","code":"sealed","request_id":"r-1"}`
	for answer, kind := range map[string]Kind{
		fmt.Sprintf("HTTP/1.1 503 x\r\nContent-Length: %d\r\n\r\n%s", len(sealed), sealed):   ErrSealed,
		"HTTP/1.1 403 x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n":                   ErrDenied,
		"HTTP/1.1 302 x\r\nLocation: http://keyhatch/v1/health\r\nContent-Length: 0\r\n\r\n": ErrFailed,
		"SSH-2.0-CANARY\r\n": ErrProtocol,
		"HTTP/1.0 200 OK\r\nContent-Length: 50\r\n\r\n" + goodValue[len(goodValue)-50:]: ErrProtocol,
		"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + goodValue[len(goodValue)-50:]:  ErrProtocol,
		"HTTP/1.1 200 OK\r\nContent-Length: CANARY\r\n\r\n":                             ErrProtocol,
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nCANARY\r\n":               ErrProtocol,
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("CANARY", maxDocument) + "\r\n\r\n":   ErrProtocol,
		"HTTP/1.1 200 OK\r\nContent-Length: 9999999\r\n\r\n":                            ErrProtocol,
		"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n\"CANARY\"":                        ErrProtocol,
		"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{\"CANARY\"":                       ErrProtocol,
		goodValue + "CANARY": ErrProtocol,
		strings.Replace(goodValue, `"name":"a"`, `"name":"b"`, 1):                                   ErrProtocol,
		strings.Replace(goodValue, `"version":"1"`, `"Version":"" `, 1):                             ErrProtocol,
		strings.Replace(goodValue, `"value":"CANARY-fault"}`, `"value_base64":"CAN-"} `+"     ", 1): ErrProtocol,
		strings.Replace(goodValue, `"value":"CANARY-fault"}`, `"value":["CANARY-5"]}`+"  ", 1):      ErrProtocol,
	} {
		t.Run(fmt.Sprintf("%.60q", answer), func(t *testing.T) {
			f := serveBytes(t, answer)
			_, err := f.client(t).Get(ctx, "a")
			wantError(t, err, kind)
			assertHidden(t, fmt.Sprintf("%v %+v %#v", err, err, err))
			equal(t, f.count(), 1)
		})
	}
}

func TestABodyWithoutEndIsRefused(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		for _, err := w.Write(make([]byte, 4096)); err == nil; _, err = w.Write(make([]byte, 4096)) {
		}
	})
	_, err := f.client(t).Get(ctx, "a")
	wantError(t, err, ErrProtocol)
}

func TestEachCodeHasItsKind(t *testing.T) {
	for code, kind := range map[string]Kind{
		"denied": ErrDenied, "quarantined": ErrQuarantined, "not_found": ErrNotFound, "sealed": ErrSealed,
		"upstream_unavailable": ErrUnavailable, "audit_unavailable": ErrUnavailable, "rate_limited": ErrRateLimited,
		"bad_request": ErrBadRequest, "internal": ErrFailed, "in_grace": ErrFailed, "new": ErrFailed,
	} {
		f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
			w.Header().Set("Retry-After", "7")
			answerJSON(w, 418, map[string]string{
				"title": "T", "code": code, "detail": "say\n\x1b[31mmore", "request_id": "r-1",
			})
		})
		_, err := f.client(t).Get(ctx, "a")
		known := wantError(t, err, kind)
		equal(t, known.Code, code)
		equal(t, known.Status, 418)
		equal(t, known.RequestID, "r-1")
		equal(t, known.RetryAfter, 7*time.Second)
		equal(t, err.Error(), "keyhatch: a: say\ufffd\ufffd[31mmore ("+code+", request r-1)")
	}
}

func TestAnAnswerWithoutAProblemIsJudgedByItsStatus(t *testing.T) {
	for status, kind := range map[int]Kind{
		403: ErrDenied, 404: ErrNotFound, 429: ErrRateLimited, 400: ErrBadRequest, 431: ErrBadRequest,
		503: ErrUnavailable, 500: ErrFailed, 204: ErrFailed,
	} {
		f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { w.WriteHeader(status) })
		_, err := f.client(t).Get(ctx, "a")
		equal(t, wantError(t, err, kind).Status, status)
	}
}

// As an agent does whose limit of connections is reached.
func TestAnAnswerThatDoesNotWaitForTheQuestionCounts(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	listener, err := net.Listen("unix", socket)
	must(t, err)
	var accepted atomic.Int32
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			accepted.Add(1)
			io.WriteString(conn, "HTTP/1.1 429 x\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n")
			conn.Close()
		}
	}()
	for read := 0; read < 200; read++ {
		_, err := New(WithSocket(socket)).Get(ctx, "a")
		wantError(t, err, ErrRateLimited)
		equal(t, int(accepted.Load()), read+1)
	}
	listener.Close()
}

func TestNotReadyIsAnAnswer(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, before int) {
		w.Header().Set("Connection", "close")
		if before == 0 {
			answerJSON(w, 503, map[string]any{"status": "unavailable", "reasons": []string{"sealed"}})
			return
		}
		answerJSON(w, 200, map[string]any{})
	})
	report, err := f.client(t).Health(ctx)
	must(t, err)
	equal(t, report.Status+report.Reasons[0], "unavailablesealed")
	_, err = f.client(t).Health(ctx)
	wantError(t, err, ErrProtocol)
}

func TestACallEndsWithItsTimeoutAndItsContext(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	})
	client := f.client(t, WithTimeout(50*time.Millisecond))
	_, err := client.Get(ctx, "a")
	if wantError(t, err, ErrTimedOut); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	_, err = client.Watch(ctx, "a")
	wantError(t, err, ErrTimedOut)

	client = f.client(t)
	canceled, cancel := context.WithCancel(ctx)
	time.AfterFunc(10*time.Millisecond, cancel)
	for _, call := range []func() error{
		func() error { _, err := client.Get(canceled, "a"); return err },
		func() error { _, err := client.Watch(canceled, "a"); return err },
		func() error { return client.OnRotate(canceled, "a", func(*Secret) {}) },
	} {
		if err := call(); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, err = client.Get(short, "a")
	wantError(t, err, ErrTimedOut)
}

func TestAFullBacklogIsWaitedFor(t *testing.T) {
	socket := filepath.Join(shortDir(t), "s")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	must(t, err)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: socket}))
	must(t, syscall.Listen(fd, 0))
	var waiting []net.Conn
	for {
		conn, err := net.Dial("unix", socket)
		if errors.Is(err, syscall.EAGAIN) {
			break
		}
		must(t, err)
		waiting = append(waiting, conn)
	}
	client := New(WithSocket(socket))
	defer client.Close()
	answered := make(chan error, 1)
	go func() {
		_, err := client.Get(ctx, "a")
		answered <- err
	}()
	file := os.NewFile(uintptr(fd), "listener")
	listener, err := net.FileListener(file)
	must(t, err)
	file.Close()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answerValue(w, "a", "1", "CANARY")
	})}
	defer server.Close()
	for _, conn := range waiting {
		conn.Close()
	}
	go server.Serve(listener)
	must(t, receive(t, answered))
}

// All at once, without a pause for each.
func TestKeptConnectionsThatHaveEndedAreReplaced(t *testing.T) {
	var all sync.WaitGroup
	all.Add(maxReads)
	f := serve(t, func(w http.ResponseWriter, r *http.Request, before int) {
		conn, _, err := w.(http.Hijacker).Hijack()
		must(t, err)
		if before < maxReads {
			all.Done()
			all.Wait()
		}
		io.WriteString(conn, goodValue)
		conn.Close()
	})
	client := f.client(t)
	done := make(chan error, maxReads)
	for read := 0; read < maxReads; read++ {
		go func() {
			_, err := client.Get(ctx, "a")
			done <- err
		}()
	}
	for read := 0; read < maxReads; read++ {
		must(t, receive(t, done))
	}
	equal(t, len(client.pool.idle), maxReads)
	_, err := client.Get(ctx, "a")
	must(t, err)
	equal(t, len(client.pool.idle), 1)
}

func TestAListThatGoesInCircles(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		answerJSON(w, 200, map[string]any{"secrets": []Listed{}, "next": "a"})
	})
	_, err := f.client(t).List(ctx, "")
	wantError(t, err, ErrProtocol)
	equal(t, f.count(), 2)
}

func TestConnectionsAreKeptAndBounded(t *testing.T) {
	ports := make(chan string, 1000)
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		local := r.Context().Value(http.LocalAddrContextKey)
		ports <- fmt.Sprintf("%p", local)
		answerValue(w, "a", "1", "CANARY")
	})
	client := f.client(t)
	done := make(chan error, 200)
	for at := 0; at < 200; at++ {
		go func() {
			_, err := client.Get(ctx, "a")
			done <- err
		}()
	}
	for at := 0; at < 200; at++ {
		must(t, receive(t, done))
	}
	seen := map[string]bool{}
	for len(ports) > 0 {
		seen[<-ports] = true
	}
	if len(seen) > maxReads {
		t.Fatalf("%d connections", len(seen))
	}
	for at := 0; at < 50; at++ {
		_, err := client.Get(ctx, "a")
		must(t, err)
		equal(t, seen[<-ports], true)
	}
}

func TestAPathIsNeverPartOfARoutesName(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) { w.Header().Set(routeHeader, "api") })
	for path, want := range map[string]string{"": "/v1/use/api/", "-other/x": "/v1/use/api/-other/x", "/x": "/v1/use/api/x"} {
		request := &http.Request{Method: "GET", URL: &url.URL{Path: path}, Header: http.Header{}}
		answer, err := f.client(t).Route("api").RoundTrip(request)
		must(t, err)
		answer.Body.Close()
		equal(t, f.requests[f.count()-1].URL.Path, want)
	}
}
