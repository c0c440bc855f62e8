// What tests stand on: a real agent, and a server that behaves as a test wants.

package keyhatch

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// agent is a running "keyhatchd dev" with a folder of its own.
type agent struct {
	t       *testing.T
	dir     string
	socket  string
	process *exec.Cmd
}

func keyhatchd(t *testing.T) string {
	t.Helper()
	folder := os.Getenv("KEYHATCH_BIN")
	if folder == "" {
		folder = "../../target/release"
	}
	path, err := filepath.Abs(filepath.Join(folder, "keyhatchd"))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("build keyhatchd first, or name its folder in KEYHATCH_BIN: %v", err)
	}
	return path
}

// shortDir is a folder for sockets: t.TempDir may be too long for one.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "keyhatch-go-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func startAgent(t *testing.T) *agent {
	t.Helper()
	dir := shortDir(t)
	a := &agent{t: t, dir: dir, socket: filepath.Join(dir, "keyhatch.sock")}
	a.start()
	t.Cleanup(func() { a.stop(syscall.SIGKILL) })
	return a
}

func (a *agent) start() {
	a.t.Helper()
	a.process = exec.Command(keyhatchd(a.t), "dev", "--dir", a.dir)
	log, err := os.OpenFile(filepath.Join(a.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(a.t, err)
	defer log.Close()
	a.process.Stdout, a.process.Stderr = log, log
	must(a.t, a.process.Start())
	client := New(WithSocket(a.socket))
	defer client.Close()
	eventually(a.t, "the agent is ready", func() bool {
		report, err := client.Health(context.Background())
		return err == nil && report.Status == "ready"
	})
}

func (a *agent) stop(signal os.Signal) {
	_ = a.process.Process.Signal(signal)
	_ = a.process.Wait()
}

func (a *agent) restart(signal os.Signal) {
	a.t.Helper()
	a.stop(signal)
	a.start()
}

// ops runs a verb of keyhatchd against this agent.
func (a *agent) ops(stdin string, args ...string) {
	a.t.Helper()
	runVerb(a.t, stdin, append(args, "--admin-socket", filepath.Join(a.dir, "admin.sock"))...)
}

func runVerb(t *testing.T, stdin string, args ...string) {
	t.Helper()
	verb := exec.Command(keyhatchd(t), args...)
	verb.Stdin = strings.NewReader(stdin)
	if out, err := verb.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

func (a *agent) put(name, value string) {
	a.t.Helper()
	a.ops(value, "store", "put", name)
}

// grant replaces what this user may do.
func (a *agent) grant(grants string) {
	a.t.Helper()
	path := filepath.Join(a.dir, "keyhatch.toml")
	config, err := os.ReadFile(path)
	must(a.t, err)
	lines := strings.Split(string(config), "\n")
	for at, line := range lines {
		if strings.HasPrefix(line, "grants") {
			lines[at] = "grants = " + grants
		}
	}
	must(a.t, os.WriteFile(path, []byte(strings.Join(lines, "\n")), 0o600))
	a.ops("", "reload")
}

func (a *agent) client(t *testing.T, options ...Option) *Client {
	t.Helper()
	client := New(append([]Option{WithSocket(a.socket)}, options...)...)
	t.Cleanup(client.Close)
	return client
}

// fake is a server at a socket, and what it was sent.
type fake struct {
	socket string

	mu       sync.Mutex
	requests []*http.Request
}

func (f *fake) client(t *testing.T, options ...Option) *Client {
	t.Helper()
	client := New(append([]Option{WithSocket(f.socket)}, options...)...)
	t.Cleanup(client.Close)
	return client
}

func (f *fake) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

// serve answers each request with handler, which learns how many came before.
func serve(t *testing.T, handler func(w http.ResponseWriter, r *http.Request, before int)) *fake {
	t.Helper()
	f := &fake{socket: filepath.Join(shortDir(t), "s")}
	listener, err := net.Listen("unix", f.socket)
	must(t, err)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		before := len(f.requests)
		f.requests = append(f.requests, r)
		f.mu.Unlock()
		handler(w, r, before)
	})}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })
	return f
}

// serveBytes answers each connection's first request with bytes, and ends the connection.
func serveBytes(t *testing.T, answers ...string) *fake {
	t.Helper()
	return serve(t, func(w http.ResponseWriter, r *http.Request, before int) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.Write([]byte(answers[min(before, len(answers)-1)]))
	})
}

func asJSON(document any) string {
	text, _ := json.Marshal(document)
	return string(text)
}

func answerJSON(w http.ResponseWriter, status int, document any) {
	w.Header().Set("Content-Type", jsonType)
	w.WriteHeader(status)
	io.WriteString(w, asJSON(document))
}

func answerValue(w http.ResponseWriter, name, version, value string) {
	answerJSON(w, 200, map[string]any{"name": name, "version": version, "value": value, "stale": false})
}

func httpGet(t *testing.T) *http.Request {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, "http://keyhatch/v1/health", nil)
	must(t, err)
	return request
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t *testing.T, err error, kind Kind) *Error {
	t.Helper()
	var known *Error
	if !errors.Is(err, kind) || !errors.As(err, &known) {
		t.Fatalf("got %v, not %v", err, kind)
	}
	if strings.Contains(err.Error(), "CANARY") {
		t.Fatalf("%v shows a value", err)
	}
	return known
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// receive takes what must come from a channel.
func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case got := <-from:
		return got
	case <-time.After(patience):
		t.Fatal("nothing came in time")
		panic("unreachable")
	}
}

func equal[T comparable](t *testing.T, got, want T) {
	t.Helper()
	if got != want {
		t.Fatalf("got %v, not %v", got, want)
	}
}
