// Where an agent listens, and whether what listens there may be trusted.

package keyhatch

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	hostSocket = "/run/keyhatch/keyhatch.sock"
	// overflowUID stands for every uid without a mapping in this user namespace (user_namespaces(7)).
	overflowUID = 65534
)

// address is where an agent listens.
type address struct {
	path string
	// guessed is that nobody named it: it is where the caller's own dev agent would be.
	guessed bool
}

// findAddress gives $KEYHATCH_SOCKET, else the host's agent if there is one, else the caller's own dev agent.
func findAddress() address {
	if path := os.Getenv("KEYHATCH_SOCKET"); path != "" {
		return address{path: path}
	}
	if _, err := os.Stat(hostSocket); err == nil {
		return address{path: hostSocket}
	}
	folder := fmt.Sprintf("/tmp/keyhatch-%d", os.Geteuid())
	if runtime := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(runtime) {
		folder = filepath.Join(runtime, "keyhatch")
	}
	return address{path: filepath.Join(folder, "keyhatch.sock"), guessed: true}
}

func (a address) String() string {
	if a.guessed {
		return fmt.Sprintf("%s (there is no %s)", a.path, hostSocket)
	}
	return a.path
}

// folder is what holds the socket: its owner may listen there.
func (a address) folder() string {
	// Not filepath.Dir: it would take /link/.. for the folder that holds the link.
	if slash := strings.LastIndexByte(a.path, '/'); slash >= 0 {
		return a.path[:slash+1]
	}
	return "."
}

// dialer makes connections to one agent, and lets none pass that someone else answers.
type dialer struct {
	timeout time.Duration

	mu      sync.Mutex
	address address
}

// where gives the address. One that was guessed is looked for again: the host's agent may have come since.
func (d *dialer) where() address {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.address.path == "" || d.address.guessed {
		d.address = findAddress()
	}
	return d.address
}

func (d *dialer) dial(ctx context.Context) (net.Conn, error) {
	address := d.where()
	// Looked at before connecting: who could put a socket there is what counts.
	folder, err := os.Stat(address.folder())
	if err != nil {
		return nil, unreachable(address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	conn, err := connect(ctx, address.path)
	if err != nil {
		return nil, unreachable(address, err)
	}
	if err := address.check(conn, folder); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func connect(ctx context.Context, path string) (*net.UnixConn, error) {
	if path[0] == '@' {
		// To the net package a leading @ means a socket without a file.
		path = "./" + path
	}
	var dialer net.Dialer
	for {
		conn, err := dialer.DialContext(ctx, "unix", path)
		if err == nil {
			return conn.(*net.UnixConn), nil
		}
		// A full backlog answers at once where a blocking connect would wait.
		if !errors.Is(err, syscall.EAGAIN) || sleep(ctx, 5*time.Millisecond) != nil {
			return nil, err
		}
	}
}

// check refuses a server that is neither root, nor the caller, nor the owner of the socket's folder.
func (a address) check(conn *net.UnixConn, folder fs.FileInfo) error {
	server, err := peerUID(conn)
	if err != nil {
		return unreachable(a, err)
	}
	owner := folder.Sys().(*syscall.Stat_t).Uid
	shared := folder.Mode().Perm()&0o022 != 0
	if trusted(server, uint32(os.Geteuid()), owner, shared, a.guessed) {
		return nil
	}
	return &Error{Kind: ErrRefused, detail: fmt.Sprintf(
		"the server at %s runs as uid %d and is not trusted, so nothing was sent to it: "+
			"name the socket of an agent that runs as root, as you, or as the owner of the socket's folder", a, server)}
}

func peerUID(conn *net.UnixConn) (uint32, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		peer, failed = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	return peer.Uid, nil
}

// trusted says whether server is root, the caller itself, or who owns the folder of the socket.
//
// The folder does not count for a path that was guessed: anyone can make /tmp/keyhatch-UID before its user does. The
// overflow uid is many users in one, so it counts only as the owner of a folder where nobody else can put a socket:
// that is the host's folder as a rootless container sees it.
func trusted(server, own, owner uint32, shared, guessed bool) bool {
	if server == overflowUID {
		return owner == server && !shared && (!guessed || own == server)
	}
	return server == 0 || server == own || (server == owner && !guessed)
}

// unreachable is the error of a connection that could not be made.
func unreachable(a address, cause error) *Error {
	restarting := errors.Is(cause, syscall.ECONNREFUSED) || errors.Is(cause, fs.ErrNotExist)
	var system syscall.Errno
	if errors.As(cause, &system) {
		cause = system
	}
	return &Error{
		Kind: ErrUnreachable, detail: fmt.Sprintf("cannot reach the agent at %s: %v", a, cause),
		cause: cause, restarting: restarting,
	}
}
