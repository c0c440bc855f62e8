// That the outputs of the driver do not show what they print.

package main

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	keyhatch "github.com/keyhatch/keyhatch/client-shims/go"
)

func TestNoneOfTheOutputsShowsTheValue(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = w.Write([]byte(`{"name":"app/db","version":"1","value":"CANARY-printed"}`))
	})}
	go server.Serve(listener)
	defer server.Close()
	secret, err := keyhatch.New(keyhatch.WithSocket(socket)).Get(context.Background(), "app/db")
	if err != nil || secret.Reveal() != "CANARY-printed" {
		t.Fatal(err)
	}
	outputs := printed(secret)
	if len(outputs) < 24 {
		t.Fatalf("only %d outputs", len(outputs))
	}
	plain := []byte("CANARY")
	forms := []string{"CANARY", hex.EncodeToString(plain), base64.StdEncoding.EncodeToString(plain), "67 65 78"}
	for _, output := range outputs {
		for _, form := range forms {
			if strings.Contains(strings.ToLower(output), strings.ToLower(form)) {
				t.Fatalf("the value is in %.300q", output)
			}
		}
	}
}
