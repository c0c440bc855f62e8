// Who is trusted, and that nobody else is sent anything.

package keyhatch

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestWhoIsTrusted(t *testing.T) {
	const own, agent, mallory = 1000, 990, 1001
	for _, c := range []struct {
		server, own, owner uint32
		shared, guessed    bool
		want               bool
	}{
		{0, own, mallory, true, false, true},
		{own, own, mallory, true, true, true},
		{agent, own, agent, false, false, true},
		{mallory, own, agent, false, false, false},
		{mallory, own, 0, true, false, false},
		{mallory, 0, 0, true, false, false},
		// A guessed folder that someone else made first proves nothing.
		{mallory, own, mallory, false, true, false},
		{overflowUID, own, overflowUID, false, true, false},
		// The overflow uid counts only where no one else can listen.
		{overflowUID, own, overflowUID, false, false, true},
		{overflowUID, own, overflowUID, true, false, false},
		{overflowUID, overflowUID, 0, true, false, false},
		{overflowUID, overflowUID, overflowUID, false, true, true},
	} {
		equal(t, trusted(c.server, c.own, c.owner, c.shared, c.guessed), c.want)
	}
}

func TestTheFolderIsTheOneTheKernelSees(t *testing.T) {
	for path, folder := range map[string]string{
		"/run/k/s": "/run/k/", "s": ".", "/s": "/", "a/../s": "a/../", "@s": ".", "@a/s": "@a/",
	} {
		equal(t, address{path: path}.folder(), folder)
	}
}

// A leading @ would be a socket without a file, which anyone can make.
func TestAnAbstractSocketIsNotAsked(t *testing.T) {
	name := fmt.Sprintf("@keyhatch-go-%d", os.Getpid())
	listener, err := net.Listen("unix", name)
	must(t, err)
	defer listener.Close()
	_, err = New(WithSocket(name), WithTimeout(50*time.Millisecond)).Get(ctx, "a")
	wantError(t, err, ErrUnreachable)
}

// The server is mallory's. It counts only once the folder of the socket is mallory's too.
func TestAServerOfAnotherUserIsSentNothing(t *testing.T) {
	const mallory, folderOwner = 20031, 20032
	if socket := os.Getenv("KEYHATCH_TEST_LISTEN"); socket != "" {
		listenAndTell(socket)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, to have another user listen")
	}
	dir := shortDir(t)
	must(t, os.Chmod(dir, 0o777))
	socket := filepath.Join(dir, "s")
	program := filepath.Join(dir, "listener")
	copyFile(t, os.Args[0], program)
	server := exec.Command(program, "-test.run=^TestAServerOfAnotherUserIsSentNothing$")
	server.Env = append(os.Environ(), "KEYHATCH_TEST_LISTEN="+socket)
	server.Dir = "/"
	server.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: mallory, Gid: mallory}}
	told, err := server.StdoutPipe()
	must(t, err)
	must(t, server.Start())
	defer server.Wait()
	eventually(t, "it listens", func() bool { _, err := os.Stat(socket); return err == nil })

	must(t, os.Chown(dir, folderOwner, folderOwner))
	client := New(WithSocket(socket))
	_, err = client.Get(ctx, "a")
	wantError(t, err, ErrRefused)
	equal(t, strings.Contains(err.Error(), fmt.Sprint(mallory)), true)
	_, err = client.Watch(ctx, "a")
	wantError(t, err, ErrRefused)
	_, err = client.Transport().RoundTrip(httpGet(t))
	equal(t, errors.Is(err, ErrRefused), true)
	must(t, os.Chown(dir, mallory, mallory))
	_, err = New(WithSocket(socket), WithTimeout(200*time.Millisecond)).Get(ctx, "a")
	if errors.Is(err, ErrRefused) {
		t.Fatal("the owner of the folder was refused")
	}
	out, err := io.ReadAll(told)
	must(t, err)
	equal(t, string(out[:min(len(out), 12)]), "0 0 0 GET /v")
}

// listenAndTell prints how many bytes each of three connections sent, then the first of a fourth.
func listenAndTell(socket string) {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		os.Exit(1)
	}
	os.Chmod(socket, 0o666)
	for at := 0; at < 4; at++ {
		conn, err := listener.Accept()
		if err != nil {
			os.Exit(1)
		}
		got := make([]byte, 6)
		count, _ := io.ReadFull(conn, got)
		if at < 3 {
			fmt.Print(count, " ")
		} else {
			fmt.Print(string(got))
		}
		conn.Close()
	}
	os.Exit(0)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	bytes, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, bytes, 0o755))
}
