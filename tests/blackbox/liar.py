"""An upstream that lies: it stands before a real one, hands on what is asked and answered, and lies where it is told to.

Whatever it makes up has a canary in it, so that a test can search for what the agent may have repeated.
"""

import contextlib
import http.client
import http.server
import json
import re
import socket
import ssl
import struct
import threading
import time


LIE = "CANARY-lie-3e55d0b2"
MIB = 1 << 20


class Liar:
    """Stands before `target`, over TLS where that does. `requests` are `METHOD PATH OPERATION`, `keys` AWS's
    access keys that signed them."""

    def __init__(self, target):
        self.target, self.tls = target, target.address.startswith("https")
        self.lie, self.about, self.requests, self.keys = None, "", [], set()
        self.quiet = threading.Event()
        self.open, self.lock = set(), threading.Lock()

    def __enter__(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Connection)
        self.server.daemon_threads, self.server.liar = True, self
        # Who is lied to ends connections in many ways.
        self.server.handle_error = lambda *_: None
        self.address = f"http{'s' * self.tls}://127.0.0.1:{self.server.server_port}"
        if self.tls:
            self.show(self.target.own)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.quiet.set()
        self.server.shutdown()
        self.server.server_close()
        self.hang_up()

    def tell(self, lie, about=""):
        """Lies from now on where `about` is part of the request; other requests are answered truly."""
        self.about, self.lie = about, lie
        self.requests.clear()

    def be_true(self):
        self.lie = None

    def show(self, issued):
        """The certificate to show from now on."""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.context.load_cert_chain(issued.certificate, issued.key)
        self.hang_up()

    def hang_up(self):
        """Ends all connections."""
        with self.lock:
            for sock in self.open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def asked(self, part=""):
        return [ask for ask in list(self.requests) if part in ask]


class Connection(http.server.BaseHTTPRequestHandler):
    """One connection of the agent's."""

    protocol_version = "HTTP/1.1"
    timeout = 60

    def setup(self):
        liar = self.server.liar
        self.plain = self.request
        with liar.lock:
            liar.open.add(self.plain)
        if liar.tls:
            self.request.settimeout(20)
            self.request = liar.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def handle(self):
        with contextlib.suppress(OSError):
            super().handle()

    def finish(self):
        with contextlib.suppress(OSError):
            super().finish()
        self.server.liar.open.discard(self.plain)

    def answer(self):
        liar = self.server.liar
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        ask = f"{self.command} {self.path} {self.headers.get('x-amz-target', '')}".strip()
        liar.requests.append(ask)
        liar.keys.update(re.findall("Credential=([^/]+)", self.headers.get("authorization", "")))
        tell = liar.lie if liar.lie and liar.about in ask else tell_truth
        tell(self, None if hasattr(tell, "made_up") else self.truth(body))

    do_GET = do_POST = do_PUT = do_LIST = do_DELETE = answer

    def truth(self, body):
        """What the real one answers: status, headers, body."""
        target = self.server.liar.target
        if target.address.startswith("https"):
            real = http.client.HTTPSConnection(
                "127.0.0.1", target.port, timeout=20, context=ssl._create_unverified_context()
            )
        else:
            real = http.client.HTTPConnection("127.0.0.1", target.port, timeout=20)
        try:
            real.request(self.command, self.path, body, dict(self.headers))
            reply = real.getresponse()
            return reply.status, dict(reply.getheaders()), reply.read()
        finally:
            real.close()

    def say(self, status, body, headers=(), length=None):
        """An answer with a length; the body may be less than it says."""
        lines = [f"HTTP/1.1 {status} Said", f"Content-Length: {len(body) if length is None else length}"]
        lines += [f"{name}: {value}" for name, value in dict(headers).items()]
        self.wfile.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def reset(self):
        """Ends the connection so that the other side sees a reset."""
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.request.close()

    def log_message(self, *_):
        pass


def tell_truth(connection, truth):
    status, headers, body = truth
    kept = {name: value for name, value in headers.items() if name.lower() in ("content-type", "retry-after")}
    connection.say(status, b"" if connection.command == "HEAD" else body, kept)


# Lies. Each is given the connection and the truth, or None where the truth isn't asked for.


def made_up(lie):
    lie.made_up = True
    return lie


def answers(status, body, **headers):
    """The same answer to everything."""

    @made_up
    def lie(connection, _):
        connection.say(status, body, {name.replace("_", "-"): value for name, value in headers.items()})

    return lie


def object_of(value):
    """KV v2's answer with some JSON for the secret's data."""
    return b'{"data":{"data":' + value + b',"metadata":{"version":9,"created_time":"2026-01-01T00:00:00Z"}}}'


DEEP = object_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000)
HUGE = object_of(json.dumps({"value": LIE * (10 * MIB // len(LIE))}).encode())
WRONG_TYPES = [
    json.dumps(wrong).encode()
    for wrong in [
        LIE, [LIE], None, {"data": LIE}, {"data": [LIE]}, {"data": {"data": LIE, "metadata": LIE}},
        {"data": {"data": {"value": LIE}, "metadata": {"version": LIE, "created_time": 1}}},
        {"data": {"data": {"value": LIE}, "metadata": {"version": -1, "created_time": LIE}}},
    ]
]
NOT_JSON = b'{"data": {"data": {"value": "' + LIE.encode()


@made_up
def no_http(connection, _):
    connection.wfile.write(LIE.encode() + b"\x00\xff\r\n\r\n" * 100)
    connection.close_connection = True


@made_up
def silence(connection, _):
    connection.server.liar.quiet.wait(60)


@made_up
def hang_up(connection, _):
    connection.close_connection = True


def reset_amid_body(connection, truth):
    body = truth[2]
    connection.say(200, body[: len(body) // 2], length=len(body))
    # So that it is read before the reset is.
    time.sleep(0.1)
    connection.reset()


def drip(connection, truth):
    """The truth, a byte at a time, so slowly that it never ends."""
    body = truth[2]
    connection.say(200, b"", length=len(body))
    for byte in body:
        if connection.server.liar.quiet.wait(0.5):
            break
        connection.wfile.write(bytes([byte]))
        connection.wfile.flush()


@made_up
def endless(connection, _):
    """A body that says no length and goes on and on."""
    connection.wfile.write(b"HTTP/1.1 200 Said\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = (LIE * (65_536 // len(LIE))).encode()
    while not connection.server.liar.quiet.is_set():
        connection.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
