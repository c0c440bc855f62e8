// Watches, rotations and the cache, over restarts and refusals.

package keyhatch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
)

func TestAWatchTellsWhatHappens(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	a.put("app/a", "CANARY-1")
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watcher, err := client.Watch(ctx, "app/a", "app/b")
	must(t, err)
	first := receive(t, watcher.Changes())
	equal(t, fmt.Sprint(first.Kind, first.Name), "currentapp/a")
	equal(t, receive(t, watcher.Changes()), Change{Kind: Current, Name: "app/b"})
	a.put("app/a", "CANARY-2")
	rotated := receive(t, watcher.Changes())
	equal(t, fmt.Sprint(rotated.Kind, rotated.Name, rotated.Version != first.Version), "rotatedapp/atrue")
	a.ops("", "store", "rm", "app/a")
	equal(t, receive(t, watcher.Changes()), Change{Kind: Removed, Name: "app/a"})
	cancel()
	eventually(t, "the channel is closed", func() bool { _, open := <-watcher.Changes(); return !open })
	if !errors.Is(watcher.Err(), context.Canceled) {
		t.Fatal(watcher.Err())
	}
}

func TestAWatchResumesAfterARestart(t *testing.T) {
	a := startAgent(t)
	watcher, err := a.client(t).Watch(ctx, "demo/api-key")
	must(t, err)
	held := receive(t, watcher.Changes())
	for round, signal := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		a.restart(signal)
		a.put("demo/api-key", fmt.Sprint("CANARY-", round))
		change := receive(t, watcher.Changes())
		equal(t, change.Kind, Rotated)
		equal(t, change.Version != held.Version, true)
		held = change
	}
}

func TestAWatchEndsWithTheGrant(t *testing.T) {
	a := startAgent(t)
	watcher, err := a.client(t).Watch(ctx, "demo/api-key")
	must(t, err)
	receive(t, watcher.Changes())
	a.grant(`[{ secrets = ["mine/**"] }]`)
	for range watcher.Changes() {
	}
	wantError(t, watcher.Err(), ErrDenied)
}

func TestAWatchResumesFromTheLastID(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, before int) {
		w.Header().Set("Content-Type", eventsType)
		if before > 0 {
			equal(t, r.Header.Get("Last-Event-ID"), []string{"", "7", "", "9", "9"}[before])
		}
		fmt.Fprint(w, []string{
			": hello\r\n\r\nid: 7\r\nevent: rotated\r\ndata: {\"name\":\r\ndata:\"a\",\"version\":\"1\"}\r\n\r\n",
			"id\nevent: new\ndata: {}\n\nevent: rotated\ndata: not json\n\n",
			"id: 8\nid: 9\nevent: removed\ndata: {\"name\":\"a\",\"version\":null}\n\nid: 10\ndata: unfinished",
			"event: current\ndata: {\"name\":\"a\",\"version\":\"2\"}\nid: no header\n\n",
		}[min(before, 3)])
		if before == 4 {
			w.(http.Flusher).Flush()
			<-r.Context().Done()
		}
	})
	watcher, err := f.client(t).Watch(ctx, "a")
	must(t, err)
	equal(t, receive(t, watcher.Changes()), Change{Rotated, "a", "1"})
	equal(t, receive(t, watcher.Changes()), Change{Removed, "a", ""})
	equal(t, receive(t, watcher.Changes()), Change{Current, "a", "2"})
}

func TestWhatIsNoStreamOfEvents(t *testing.T) {
	for _, answer := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n",
	} {
		_, err := serveBytes(t, answer).client(t).Watch(ctx, "a")
		wantError(t, err, ErrProtocol)
	}
	const head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
	line := "data: " + strings.Repeat("x", 90) + "\n"
	for _, text := range []string{"data: " + strings.Repeat("x", maxLine), strings.Repeat(line, maxLine/80)} {
		watcher, err := serveBytes(t, fmt.Sprintf("%s%x\r\n%s\r\n", head, len(text), text)).client(t).Watch(ctx, "a")
		must(t, err)
		for range watcher.Changes() {
		}
		wantError(t, watcher.Err(), ErrProtocol)
	}
}

func TestCloseEndsWatches(t *testing.T) {
	client := startAgent(t).client(t)
	watcher, err := client.Watch(ctx, "demo/api-key")
	must(t, err)
	receive(t, watcher.Changes())
	client.Close()
	for range watcher.Changes() {
	}
	if !errors.Is(watcher.Err(), context.Canceled) {
		t.Fatal(watcher.Err())
	}
}

func TestARotationReachesOnRotate(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	told := make(chan *Secret, 9)
	must(t, client.OnRotate(ctx, "demo/api-key", func(secret *Secret) { told <- secret }))
	fields := make(chan *Secret, 9)
	must(t, client.OnRotate(ctx, "app/later#password", func(secret *Secret) { fields <- secret }))
	for round := 0; round < 5; round++ {
		if round > 2 {
			a.restart(syscall.SIGTERM)
		}
		a.put("demo/api-key", fmt.Sprint("CANARY-", round))
		equal(t, receive(t, told).Reveal(), fmt.Sprint("CANARY-", round))
		a.put("app/later", fmt.Sprintf(`{"password":"CANARY-%d"}`, round))
		equal(t, receive(t, fields).Reveal(), fmt.Sprint("CANARY-", round))
	}
	equal(t, len(told)+len(fields), 0)
}

// Each stream says anew what stands, and ends.
func TestOnRotateIsNotToldTwice(t *testing.T) {
	stands := []string{"1", "1", "2", "2", "3"}
	var streams atomic.Int32
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/v1/watch" {
			streams.Add(1)
		}
		version := stands[min(int(streams.Load()), len(stands))-1]
		if r.URL.Path != "/v1/watch" {
			answerValue(w, "a", version, "CANARY")
			return
		}
		w.Header().Set("Content-Type", eventsType)
		fmt.Fprintf(w, "event: current\ndata: {\"name\":\"a\",\"version\":%q}\n\n", version)
	})
	versions := make(chan string, 9)
	must(t, f.client(t).OnRotate(ctx, "a", func(secret *Secret) { versions <- secret.Version() }))
	equal(t, receive(t, versions)+receive(t, versions), "23")
}

func TestARotationWhileTheAgentIsAwayReachesOnRotate(t *testing.T) {
	a := startAgent(t)
	told := make(chan *Secret, 9)
	must(t, a.client(t).OnRotate(ctx, "demo/api-key", func(secret *Secret) { told <- secret }))
	a.stop(syscall.SIGTERM)
	store := []string{"store", "put", "demo/api-key", "--store", a.dir + "/store", "--key", "file:" + a.dir + "/store.key"}
	runVerb(t, "CANARY-away", store...)
	a.start()
	equal(t, receive(t, told).Reveal(), "CANARY-away")
}

func TestTheCacheIsAskedInsteadOfTheAgentAndFollowsRotations(t *testing.T) {
	a := startAgent(t)
	client := a.client(t, WithCache())
	a.put("app/db", `{"password":"CANARY-0"}`)
	for round := 0; round < 3; round++ {
		value := fmt.Sprintf("CANARY-%d", round)
		a.put("app/db", fmt.Sprintf(`{"password":%q}`, value))
		eventually(t, "the new value is in the cache", func() bool {
			return readUntilCached(t, client, "app/db#password").Reveal() == value
		})
		before, err := client.Get(ctx, "app/db#password")
		must(t, err)
		again, err := client.Get(ctx, "app/db#password")
		must(t, err)
		equal(t, again, before)
		equal(t, readUntilCached(t, client, "app/db").Version(), before.Version())
	}
}

func TestTheCacheIsForgotten(t *testing.T) {
	a := startAgent(t)
	client := a.client(t, WithCache(), WithTimeout(patience))
	gone := func() bool { return client.cache.get(wanted{name: "demo/api-key"}) == nil }

	readUntilCached(t, client, "demo/api-key")
	a.stop(syscall.SIGKILL)
	eventually(t, "forgotten without the agent", gone)
	a.start()
	readUntilCached(t, client, "demo/api-key")
	a.ops("", "seal")
	eventually(t, "forgotten while sealed", gone)
	_, err := client.Get(ctx, "demo/api-key")
	wantError(t, err, ErrSealed)
	a.ops("", "unseal")
	readUntilCached(t, client, "demo/api-key")
	a.grant(`[{ secrets = ["mine/**"] }]`)
	eventually(t, "forgotten without the grant", gone)
	_, err = client.Get(ctx, "demo/api-key")
	wantError(t, err, ErrDenied)
}

func TestTheCacheHoldsNothingWithoutAWatch(t *testing.T) {
	f := serve(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		if r.URL.Path == "/v1/watch" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		answerValue(w, "a", "1", "CANARY")
	})
	client := f.client(t, WithCache())
	for read := 0; read < 50; read++ {
		_, err := client.Get(ctx, "a")
		must(t, err)
	}
	eventually(t, "the watch was asked for", func() bool { return f.count() == 51 })
	equal(t, client.cache.get(wanted{name: "a"}), nil)
}

func TestClosingForgetsTheCache(t *testing.T) {
	client := startAgent(t).client(t, WithCache())
	readUntilCached(t, client, "demo/api-key")
	client.Close()
	eventually(t, "forgotten", func() bool { return client.cache.get(wanted{name: "demo/api-key"}) == nil })
	_, err := client.Get(ctx, "demo/api-key")
	must(t, err)
}

func readUntilCached(t *testing.T, client *Client, name string) *Secret {
	t.Helper()
	wanted, err := parseWanted(name)
	must(t, err)
	var secret *Secret
	eventually(t, "the value is in the cache", func() bool {
		_, err := client.Get(ctx, name)
		must(t, err)
		secret = client.cache.get(wanted)
		return secret != nil
	})
	return secret
}
