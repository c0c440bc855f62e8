"""An upstream that speaks HTTP/2 in frames of the test's own choice: what no real server does when it is asked to."""

import contextlib
import socket
import ssl
import struct
import threading

DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE = 3, 4
NO_ERROR, INTERNAL_ERROR, REFUSED_STREAM = 0, 2, 7
# `:status` 200, of the static table (RFC 7541 appendix A).
OK = b"\x88"


def setting(name, value):
    return struct.pack(">HI", name, value)


class Connection:
    """One connection: `heads` are the blocks of its requests by stream."""

    def __init__(self, sock, number):
        self.sock, self.number, self.heads, self.buffer = sock, number, {}, b""
        self.lock, self.settled = threading.Lock(), False

    def send(self, kind, flags, stream, body=b""):
        head = struct.pack(">I", len(body))[1:] + bytes([kind, flags]) + struct.pack(">I", stream)
        with self.lock:
            self.sock.sendall(head + body)

    def exactly(self, count):
        while len(self.buffer) < count:
            piece = self.sock.recv(1 << 16)
            if not piece:
                raise OSError("ended")
            self.buffer += piece
        taken, self.buffer = self.buffer[:count], self.buffer[count:]
        return taken

    def any_frame(self):
        """The next frame, once settings are answered: kind, flags, stream, body."""
        head = self.exactly(9)
        body = self.exactly(int.from_bytes(head[:3], "big"))
        kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big") & 0x7FFFFFFF
        if kind == SETTINGS:
            self.settled |= bool(flags & ACK)
            if not flags & ACK:
                self.send(SETTINGS, ACK, 0)
        return kind, flags, stream, body

    def frame(self):
        """The next frame but settings."""
        while (frame := self.any_frame())[0] == SETTINGS:
            pass
        return frame

    def settle(self):
        """Until the other side has taken our settings."""
        while not self.settled:
            self.any_frame()

    def request(self):
        """The stream of the next request whose head has come."""
        while True:
            kind, _, stream, body = self.frame()
            if kind == HEADERS:
                self.heads[stream] = body
                return stream

    def answer(self, stream, body=b"ok", end=True):
        self.send(HEADERS, END_HEADERS, stream, OK)
        self.send(DATA, END_STREAM if end else 0, stream, body)


class Upstream:
    """Calls `serve(connection)` for each connection, once both sides have greeted each other."""

    def __init__(self, issued, serve, settings=b"", http2=True):
        self.serve, self.settings, self.connections, self.http2 = serve, settings, [], http2
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.address = f"https://127.0.0.1:{self.listener.getsockname()[1]}"
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(issued.certificate, issued.key)
        self.context.set_alpn_protocols(["h2" if http2 else "http/1.1"])

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.connections:
            # Wakes a thread that reads; what it holds is closed with it.
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def accept(self):
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self.listener.accept()
                threading.Thread(target=self.greet, args=(sock,), daemon=True).start()

    def greet(self, sock):
        # Or what is written second waits for the other side to say that it has the first.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError), sock, self.context.wrap_socket(sock, server_side=True) as tls:
            connection = Connection(tls, len(self.connections))
            self.connections.append(connection)
            if self.http2:
                assert connection.exactly(24).startswith(b"PRI * HTTP/2.0")
                connection.send(SETTINGS, 0, 0, self.settings)
            self.serve(connection)
