// Command driver does what a conformance suite says, by the library's public API: one JSON object a line on standard
// input, one a line on standard output. Only tests start it.
package main

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	keyhatch "github.com/keyhatch/keyhatch/client-shims/go"
)

// order is one line of input.
type order struct {
	Op      string   `json:"op"`
	Name    string   `json:"name"`
	Names   []string `json:"names"`
	Field   *string  `json:"field"`
	Version *string  `json:"version"`
	Cache   bool     `json:"cache"`
	Prefix  string   `json:"prefix"`
	Count   int      `json:"count"`
	Seconds int      `json:"seconds"`
	Reads   int      `json:"reads"`
	PauseMS int      `json:"pause_ms"`

	Route   string            `json:"route"`
	Path    string            `json:"path"`
	Method  string            `json:"method"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Stream  bool              `json:"stream"`
}

// reply is one line of output.
type reply map[string]any

var cached = keyhatch.New(keyhatch.WithCache())

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var order order
		if err := json.Unmarshal(lines.Bytes(), &order); err != nil {
			write(failure(err))
			continue
		}
		if order.Op == "quit" {
			return
		}
		answer, err := do(context.Background(), &order)
		if err != nil {
			answer = failure(err)
		}
		write(answer)
	}
}

func do(ctx context.Context, order *order) (reply, error) {
	switch order.Op {
	case "get":
		return get(ctx, order)
	case "list":
		listed, err := keyhatch.List(ctx, order.Prefix)
		return reply{"ok": true, "secrets": orEmpty(listed)}, err
	case "batch":
		return batch(ctx, order.Names)
	case "whoami":
		identity, err := keyhatch.Whoami(ctx)
		if err != nil {
			return nil, err
		}
		return reply{"ok": true, "bot": orNull(identity.Bot), "uid": identity.UID}, nil
	case "health":
		report, err := keyhatch.Health(ctx)
		if err != nil {
			return nil, err
		}
		return reply{"ok": true, "status": report.Status}, nil
	case "wait":
		return wait(ctx, order)
	case "watch":
		return watch(ctx, order)
	case "on_rotate":
		err := keyhatch.OnRotate(ctx, order.Name, func(secret *keyhatch.Secret) {
			write(reply{"rotated": secret.Name(), "version": secret.Version()})
		})
		return reply{"ok": true, "started": true}, err
	case "use":
		return use(ctx, order)
	case "loop":
		return loop(ctx, order), nil
	case "print":
		secret, err := keyhatch.Get(ctx, order.Name)
		if err != nil {
			return nil, err
		}
		return reply{"ok": true, "outputs": printed(secret)}, nil
	}
	return nil, errors.New("there is no such op")
}

func get(ctx context.Context, order *order) (reply, error) {
	var secret *keyhatch.Secret
	var err error
	switch {
	case order.Version != nil:
		secret, err = keyhatch.GetVersion(ctx, order.Name, *order.Version)
	case order.Cache:
		secret, err = cached.Get(ctx, order.Name)
	default:
		secret, err = keyhatch.Get(ctx, order.Name)
	}
	if err == nil && order.Field != nil {
		secret, err = secret.Field(*order.Field)
	}
	if err != nil {
		return nil, err
	}
	answer := given(secret)
	answer["ok"] = true
	return answer, nil
}

func given(secret *keyhatch.Secret) reply {
	value := base64.StdEncoding.EncodeToString(secret.RevealBytes())
	return reply{"name": secret.Name(), "version": secret.Version(), "value": value, "stale": secret.Stale()}
}

func batch(ctx context.Context, names []string) (reply, error) {
	result, err := keyhatch.Batch(ctx, names...)
	if err != nil {
		return nil, err
	}
	secrets := []reply{}
	for _, secret := range result.Secrets {
		secrets = append(secrets, given(secret))
	}
	return reply{"ok": true, "secrets": secrets, "errors": orEmpty(result.Errors)}, nil
}

func wait(ctx context.Context, order *order) (reply, error) {
	write(reply{"ok": true, "started": true})
	secret, err := keyhatch.WaitForChange(ctx, order.Name, *order.Version, time.Duration(order.Seconds)*time.Second)
	if err != nil || secret == nil {
		return reply{"ok": true, "changed": false}, err
	}
	answer := given(secret)
	answer["ok"], answer["changed"] = true, true
	return answer, nil
}

// watch answers that it has started; the answer with the events comes when they have come.
func watch(ctx context.Context, order *order) (reply, error) {
	ctx, end := context.WithCancel(ctx)
	watcher, err := keyhatch.Watch(ctx, order.Names...)
	if err != nil {
		end()
		return nil, err
	}
	go func() {
		defer end()
		events := []reply{}
		for len(events) < order.Count {
			change, ok := <-watcher.Changes()
			if !ok {
				write(failure(watcher.Err()))
				return
			}
			version := orNull(change.Version)
			events = append(events, reply{"kind": change.Kind, "name": change.Name, "version": version})
		}
		write(reply{"ok": true, "events": events})
	}()
	return reply{"ok": true, "started": true}, nil
}

func use(ctx context.Context, order *order) (reply, error) {
	url := "https://upstream.example" + order.Path
	request, err := http.NewRequestWithContext(ctx, order.Method, url, strings.NewReader(order.Body))
	if err != nil {
		return nil, err
	}
	for name, value := range order.Headers {
		request.Header.Set(name, value)
	}
	client := &http.Client{Transport: keyhatch.Route(order.Route)}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	if !order.Stream {
		body, err := io.ReadAll(response.Body)
		route := response.Header.Get("Keyhatch-Route")
		return reply{"ok": true, "status": response.StatusCode, "route": route, "body": string(body)}, err
	}
	piece := make([]byte, 4096)
	for {
		count, err := response.Body.Read(piece)
		if count > 0 {
			write(reply{"ok": true, "piece": string(piece[:count])})
		}
		if err == io.EOF {
			return reply{"ok": true, "end": true}, nil
		} else if err != nil {
			return nil, err
		}
	}
}

func loop(ctx context.Context, order *order) reply {
	failures, last := 0, ""
	for read := 0; read < order.Reads; read++ {
		if _, err := keyhatch.Get(ctx, order.Name); err != nil {
			failures++
			last = err.Error()
		}
		time.Sleep(time.Duration(order.PauseMS) * time.Millisecond)
	}
	return reply{"ok": true, "reads": order.Reads, "failures": failures, "last_error": orNull(last)}
}

func failure(err error) reply {
	answer := reply{"error": "Failed", "code": nil, "status": nil, "request_id": nil, "message": err.Error()}
	var known *keyhatch.Error
	if errors.As(err, &known) {
		answer["error"], answer["code"] = known.Kind, orNull(known.Code)
		answer["request_id"] = orNull(known.RequestID)
		if known.Status != 0 {
			answer["status"] = known.Status
		}
	}
	return answer
}

func orNull(text string) any {
	if text == "" {
		return nil
	}
	return text
}

func orEmpty[T any](list []T) []T {
	return append([]T{}, list...)
}

var output sync.Mutex

// write puts out one line, whole.
func write(answer reply) {
	output.Lock()
	defer output.Unlock()
	line, err := json.Marshal(answer)
	if err != nil {
		panic(err)
	}
	if _, err := os.Stdout.Write(append(line, '\n')); err != nil {
		os.Exit(1)
	}
}
