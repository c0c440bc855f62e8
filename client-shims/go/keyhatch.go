// Package keyhatch is the client of the Keyhatch secrets agent: a program asks a Unix socket of its host for a secret
// instead of reading an environment variable.
//
//	key, err := keyhatch.Get(ctx, "openai/api-key")
//	if err != nil {
//		return err
//	}
//	request.Header.Set("Authorization", "Bearer "+key.Reveal())
//
// A [Secret] does not print itself: only [Secret.Reveal] and [Secret.RevealBytes] give its value. Errors are told
// apart with errors.Is (see [Kind]) and carry the agent's code and request id (see [Error]). A read that meets a
// restart of the agent waits for it, for at most five seconds. Before anything is sent, the client checks that what
// listens at the socket is root, this user, or the owner of the socket's folder.
//
// The socket is $KEYHATCH_SOCKET, else the host's /run/keyhatch/keyhatch.sock, else that of the caller's own
// "keyhatchd dev". Linux only. Go's memory is garbage collected, so values are not wiped from it.
package keyhatch

import (
	"context"
	"net/http"
	"time"
)

// DefaultClient is what the functions of this package ask.
var DefaultClient = New()

// Get calls [Client.Get] of the [DefaultClient].
func Get(ctx context.Context, name string) (*Secret, error) {
	return DefaultClient.Get(ctx, name)
}

// GetVersion calls [Client.GetVersion] of the [DefaultClient].
func GetVersion(ctx context.Context, name, version string) (*Secret, error) {
	return DefaultClient.GetVersion(ctx, name, version)
}

// List calls [Client.List] of the [DefaultClient].
func List(ctx context.Context, prefix string) ([]Listed, error) {
	return DefaultClient.List(ctx, prefix)
}

// Batch calls [Client.Batch] of the [DefaultClient].
func Batch(ctx context.Context, names ...string) (*BatchResult, error) {
	return DefaultClient.Batch(ctx, names...)
}

// Whoami calls [Client.Whoami] of the [DefaultClient].
func Whoami(ctx context.Context) (*Identity, error) {
	return DefaultClient.Whoami(ctx)
}

// Health calls [Client.Health] of the [DefaultClient].
func Health(ctx context.Context) (*HealthReport, error) {
	return DefaultClient.Health(ctx)
}

// WaitForChange calls [Client.WaitForChange] of the [DefaultClient].
func WaitForChange(ctx context.Context, name, version string, wait time.Duration) (*Secret, error) {
	return DefaultClient.WaitForChange(ctx, name, version, wait)
}

// Watch calls [Client.Watch] of the [DefaultClient].
func Watch(ctx context.Context, names ...string) (*Watcher, error) {
	return DefaultClient.Watch(ctx, names...)
}

// OnRotate calls [Client.OnRotate] of the [DefaultClient].
func OnRotate(ctx context.Context, name string, tell func(*Secret)) error {
	return DefaultClient.OnRotate(ctx, name, tell)
}

// Route calls [Client.Route] of the [DefaultClient].
func Route(name string) http.RoundTripper {
	return DefaultClient.Route(name)
}
