// What the calls give, asked of a real agent.

package keyhatch

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestValuesComeExactly(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	values := map[string]string{
		"v/empty": "", "v/text": "CANARY-é\n", "v/bytes": "\xff\x00CANARY", "v/quotes": "\"\\\u2028</script>\x01",
		"v/large": strings.Repeat("\x01", maxValue), "v/a.b_c+d=e@f-g": "CANARY-name",
	}
	for name, value := range values {
		a.put(name, value)
	}
	for name, value := range values {
		secret, err := client.Get(ctx, name)
		must(t, err)
		equal(t, secret.Reveal(), value)
		equal(t, secret.Name(), name)
		equal(t, secret.Stale(), false)
	}
	a.put("v/text", "CANARY-new")
	current, err := client.Get(ctx, "v/text")
	must(t, err)
	previous, err := client.GetVersion(ctx, "v/text", Previous)
	must(t, err)
	equal(t, current.Reveal()+previous.Reveal(), "CANARY-newCANARY-é\n")
	again, err := client.GetVersion(ctx, "v/text", previous.Version())
	must(t, err)
	equal(t, again.Version(), previous.Version())
}

func TestOneField(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	a.put("app/db", `{"password":"CANARY-1","a b&c#d":2}`)
	for field, want := range map[string]string{"password": "CANARY-1", "a b&c#d": "2"} {
		secret, err := client.Get(ctx, "app/db#"+field)
		must(t, err)
		equal(t, secret.Reveal(), want)
		whole, err := client.Get(ctx, "app/db")
		must(t, err)
		local, err := whole.Field(field)
		must(t, err)
		equal(t, local.Reveal(), want)
	}
	_, err := client.Get(ctx, "app/db#none")
	wantError(t, err, ErrNotFound)
}

func TestListsAndBatchesOfAnySize(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	many := map[string]string{}
	var names []string
	for at := 0; at < 1203; at++ {
		name := fmt.Sprintf("many/%04d", at)
		many[name] = "CANARY"
		names = append(names, name)
	}
	a.ops(asJSON(many), "store", "import", "--from", "json")
	listed, err := client.List(ctx, "many/")
	must(t, err)
	equal(t, len(listed), len(names))
	for at, one := range listed {
		equal(t, one.Name, names[at])
	}
	result, err := client.Batch(ctx, append(names[:150:150], "no/such", "bad//name")...)
	must(t, err)
	equal(t, len(result.Secrets), 150)
	equal(t, fmt.Sprint(result.Errors), "[{no/such not_found} {bad//name bad_request}]")
	equal(t, result.Get("many/0149").Reveal(), "CANARY")
	equal(t, result.Get("no/such"), nil)
	assertHidden(t, fmt.Sprintf("%v %+v %#v", result, result, result))
	none, err := client.List(ctx, "none/")
	must(t, err)
	equal(t, len(none), 0)
}

func TestRefusalsOfARealAgent(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	_, err := client.Get(ctx, "no/such")
	known := wantError(t, err, ErrNotFound)
	equal(t, known.Code, "not_found")
	equal(t, known.Status, 404)
	equal(t, strings.Contains(err.Error(), known.RequestID) && known.RequestID != "", true)
	a.grant(`[{ secrets = ["mine/**"] }]`)
	for _, name := range []string{"demo/api-key", "no/such"} {
		_, err = client.Get(ctx, name)
		wantError(t, err, ErrDenied)
		_, err = client.Watch(ctx, name)
		wantError(t, err, ErrDenied)
		wantError(t, client.OnRotate(ctx, name, func(*Secret) {}), ErrDenied)
	}
	a.ops("", "seal")
	_, err = client.Get(ctx, "mine/key")
	wantError(t, err, ErrSealed)
	report, err := client.Health(ctx)
	must(t, err)
	equal(t, report.Status, "unavailable")
}

func TestWhoami(t *testing.T) {
	identity, err := startAgent(t).client(t).Whoami(ctx)
	must(t, err)
	equal(t, identity.Bot, "me")
	equal(t, int(*identity.UID), os.Getuid())
	equal(t, identity.PID, os.Getpid())
}

func TestNothingIsSentForWhatIsNoName(t *testing.T) {
	f := serve(t, valueOf("a", "CANARY"))
	client := f.client(t)
	bad := []string{
		"", "/a", "a/", "a//b", ".", "a/..", "a b", "a\r\nX: y", "é", "a?b", "a%2fb", "#f", strings.Repeat("a", 513),
	}
	for _, name := range bad {
		_, err := client.Get(ctx, name)
		wantError(t, err, ErrName)
		_, err = client.Watch(ctx, "good", name)
		wantError(t, err, ErrName)
		wantError(t, client.OnRotate(ctx, name, func(*Secret) {}), ErrName)
	}
	_, err := client.Watch(ctx)
	wantError(t, err, ErrName)
	equal(t, f.count(), 0)
	_, _ = client.Get(ctx, strings.Repeat("a", 512)+"#any field \r\n")
	equal(t, f.count(), 1)
	equal(t, f.requests[0].RequestURI, "/v1/secrets/"+strings.Repeat("a", 512)+"?field=any%20field%20%0D%0A")
}

func TestTheTransportSpeaksToTheSocket(t *testing.T) {
	a := startAgent(t)
	agent := &http.Client{Transport: a.client(t).Transport()}
	response, err := agent.Get("http://keyhatch/v1/health")
	must(t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(t, err)
	equal(t, strings.Contains(string(body), `"ready"`), true)
}

// Both ways to go: in order, and killed. No read may fail, whoever asks meanwhile.
func TestNoReadFailsOverRestarts(t *testing.T) {
	a := startAgent(t)
	client := a.client(t)
	stop := make(chan struct{})
	const readers = 4
	failures := make(chan error, readers)
	for reader := 0; reader < readers; reader++ {
		go func() {
			reads := 0
			for {
				select {
				case <-stop:
					if reads == 0 {
						failures <- errors.New("nothing was read")
					}
					failures <- nil
					return
				default:
				}
				secret, err := client.Get(ctx, "demo/api-key")
				if err != nil || secret.Reveal() == "" {
					failures <- fmt.Errorf("after %d reads: %w", reads, err)
					return
				}
				reads++
			}
		}()
	}
	for restart := 0; restart < 20; restart++ {
		a.restart([]os.Signal{syscall.SIGTERM, syscall.SIGKILL}[restart%2])
	}
	close(stop)
	for reader := 0; reader < readers; reader++ {
		must(t, receive(t, failures))
	}
}

func TestTheSocketIsFound(t *testing.T) {
	a := startAgent(t)
	defer func(before *Client) { DefaultClient = before }(DefaultClient)
	DefaultClient = New()
	t.Setenv("KEYHATCH_SOCKET", a.socket)
	_, err := Get(ctx, "demo/api-key")
	must(t, err)
	if _, err := os.Stat(hostSocket); err == nil {
		t.Skip("this host has an agent of its own")
	}
	t.Setenv("KEYHATCH_SOCKET", "")
	runtime := shortDir(t)
	t.Setenv("XDG_RUNTIME_DIR", runtime)
	must(t, os.Symlink(a.dir, filepath.Join(runtime, "keyhatch")))
	client := New()
	defer client.Close()
	_, err = client.Get(ctx, "demo/api-key")
	must(t, err)
	t.Setenv("XDG_RUNTIME_DIR", "relative")
	equal(t, findAddress().path, fmt.Sprintf("/tmp/keyhatch-%d/keyhatch.sock", os.Geteuid()))
}
