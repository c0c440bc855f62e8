"""An upstream of a route that does whatever may get a credential out: it echoes, cuts, drips, compresses and lies.

It speaks HTTP/1.1 over bare sockets, so that each byte of what comes and goes is the test's to see and to choose.
"""

import base64
import contextlib
import gzip
import hashlib
import json
import socket
import ssl
import threading
import urllib.parse

EVENT = b"data: {\"n\": %d}\n\n"


class Request:
    """One request as it came: `line`, `headers` in their order, and `body`."""

    def __init__(self, head, body, trailers):
        self.line, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.target, self.version = self.line.split(" ")
        self.pairs = [tuple(part.strip() for part in line.split(":", 1)) for line in lines]
        self.headers = {name.lower(): value for name, value in self.pairs}
        self.body, self.trailers = body, trailers
        self.path, _, query = self.target.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))

    @property
    def credential(self):
        """Whatever the route put into it."""
        value = self.headers.get("authorization", self.headers.get("x-api-key", self.query.get("key", "")))
        return value.removeprefix("Bearer ").removeprefix("Basic ")


class Hostile:
    """Answers by path; `seen` are the requests, `tls` a certificate to show."""

    def __init__(self, tls=None, host="127.0.0.1"):
        self.seen, self.connections, self.accepts = [], 0, None
        self.go, self.stop = threading.Event(), threading.Event()
        self.listener = socket.create_server((host, 0))
        self.port = self.listener.getsockname()[1]
        self.context = None
        if tls:
            self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.context.load_cert_chain(tls.certificate, tls.key)
        self.address = f"http{'s' * bool(tls)}://{host}:{self.port}"

    def __enter__(self):
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.go.set()
        # Only a shutdown wakes who accepts.
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def last(self, path=None):
        return [request for request in self.seen if path in (None, request.path)][-1]

    def accept(self):
        while not self.stop.is_set():
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()

    def serve(self, sock):
        with contextlib.suppress(OSError, ValueError), sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.context:
                sock = self.context.wrap_socket(sock, server_side=True)
            with sock, sock.makefile("rb") as lines:
                try:
                    while self.one(sock, lines):
                        pass
                finally:
                    # A child that was forked meanwhile holds the socket, too.
                    sock.shutdown(socket.SHUT_RDWR)

    def one(self, sock, lines):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            line = lines.readline()
            if not line:
                return False
            head += line
        head = head[:-4]
        request = Request(head, b"", [])
        behave = getattr(self, "do_" + request.path.strip("/").split("/")[0].replace("-", "_"), self.do_echo)
        if behave != self.do_early:
            self.take_body(request, lines)
        self.seen.append(request)
        return behave(request, Answer(sock), lines) is not False

    def take_body(self, request, lines):
        if "chunked" in request.headers.get("transfer-encoding", ""):
            while size := int(lines.readline().split(b";")[0], 16):
                request.body += lines.read(size)
                lines.readline()
            while (line := lines.readline().strip()):
                request.trailers.append(line)
            return
        left, digest = int(request.headers.get("content-length", 0)), hashlib.sha256()
        kept = left <= 1 << 20
        while left:
            piece = lines.read(min(left, 1 << 16))
            if not piece:
                raise ValueError("cut")
            left -= len(piece)
            digest.update(piece)
            request.body += piece if kept else b""
        request.sha256 = digest.hexdigest()

    # What each path does.

    def do_echo(self, request, answer, _):
        told = {"line": request.line, "headers": request.pairs, "body": request.body.decode("latin-1")}
        answer.whole(json.dumps(told).encode(), kind="application/json")

    def do_echo_header(self, request, answer, _):
        key = request.credential
        answer.whole(b"see the headers", reason=key, **{
            "x-echo": f"Bearer {key}", "set-cookie": f"k={urllib.parse.quote(key, safe='')}; Path=/",
            "location": f"https://elsewhere.test/?key={key}", "x-base64": base64.b64encode(b"Bearer " + key.encode()).decode(),
            "keyhatch-route": "forged",
        })

    def do_echo_form(self, request, answer, _):
        raw = request.credential.encode()
        forms = {
            "raw": raw, "base64": base64.b64encode(b"{\"k\":\"" + raw + b"\"}"), "base64url": base64.urlsafe_b64encode(b"x" + raw),
            "hex": raw.hex().encode(), "HEX": raw.hex().upper().encode(), "json": json.dumps(raw.decode()).encode(),
            "percent": urllib.parse.quote(raw, safe="").encode(), "plus": urllib.parse.quote_plus(raw).encode(),
        }
        answer.whole(b"<" + forms[request.query["as"]] + b">")

    def do_echo_chunks(self, request, answer, _):
        text, size = b"before " + request.credential.encode() + b" after", int(request.query["size"])
        answer.begin(**{"transfer-encoding": "chunked"})
        for at in range(0, len(text), size):
            answer.chunk(text[at : at + size])
        answer.end()

    def do_echo_trailer(self, request, answer, _):
        answer.begin(**{"transfer-encoding": "chunked", "trailer": "x-sum, x-key"})
        answer.chunk(b"body")
        answer.end(**{"x-sum": "1", "x-key": request.credential})

    def do_gzip(self, request, answer, _):
        answer.whole(gzip.compress(request.credential.encode()), **{"content-encoding": "gzip"})

    def do_v1(self, request, answer, lines):
        """As the APIs of OpenAI and Anthropic, and with the key in what the model says."""
        if not request.path.endswith(("/completions", "/messages")):
            return self.do_echo(request, answer, lines)
        asked, says = json.loads(request.body), ["your ", "key is ", request.credential]
        if request.path.endswith("/messages"):
            text = {"type": "text", "text": "".join(says)}
            return answer.whole(json.dumps({
                "id": "m", "type": "message", "role": "assistant", "model": asked["model"], "content": [text],
                "stop_reason": "end_turn", "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
            }).encode(), kind="application/json")
        about = {"id": "c", "created": 1, "model": asked["model"]}
        if not asked.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "".join(says)}}
            done = {**about, "object": "chat.completion", "choices": [choice]}
            return answer.whole(json.dumps(done).encode(), kind="application/json")
        answer.begin(kind="text/event-stream", **{"transfer-encoding": "chunked"})
        for piece in says:
            choice = {"index": 0, "delta": {"role": "assistant", "content": piece}, "finish_reason": None}
            event = json.dumps({**about, "object": "chat.completion.chunk", "choices": [choice]})
            answer.chunk(f"data: {event}\n\n".encode())
        answer.chunk(b"data: [DONE]\n\n")
        answer.end()

    def do_redirect(self, request, answer, _):
        answer.whole(b"", status=307, location=request.query["to"])

    def do_status(self, request, answer, _):
        answer.whole(b"{\"error\": \"no\"}", status=int(request.query["code"]), kind="application/json", **{"x-own": "1"})

    def do_only(self, request, answer, _):
        good = self.accepts is None or request.credential == self.accepts
        answer.whole(b"welcome" if good else b"who?", status=200 if good else 401)

    def do_only_late(self, request, answer, lines):
        """As `only`, but the first time once the test lets it."""
        if not self.go.is_set():
            self.go.wait(30)
        self.do_only(request, answer, lines)

    def do_sse(self, request, answer, _):
        """Events as the test lets them go; the key is never in them."""
        answer.begin(kind="text/event-stream", **{"transfer-encoding": "chunked"})
        for number in range(int(request.query["events"])):
            self.go.wait(30)
            self.go.clear()
            answer.chunk(EVENT % number)
        answer.end()

    def do_drip(self, request, answer, _):
        text = f"{request.credential}.".encode()
        answer.begin(**{"content-length": str(len(text))})
        for byte in text:
            answer.send(bytes([byte]))

    def do_download(self, request, answer, _):
        left, piece = int(request.query["bytes"]), b"0123456789abcdef" * 4096
        answer.begin(**{"content-length": str(left)})
        while left:
            sent = min(left, len(piece))
            answer.send(piece[:sent])
            left -= sent

    def do_upload(self, request, answer, _):
        answer.whole(request.sha256.encode())

    def do_early(self, request, answer, _):
        """Answers before it has read the body, and closes."""
        answer.whole(b"enough", status=413, connection="close")
        return False

    def do_silent(self, request, answer, _):
        self.stop.wait(60)
        return False

    def do_cut(self, request, answer, _):
        answer.begin(**{"content-length": "100"})
        answer.send(b"only this")
        return False

    def do_hang_up(self, request, answer, _):
        return False

    def do_nonsense(self, request, answer, _):
        answer.send(b"220 smtp.example.test ESMTP\r\n")
        return False

    def do_once(self, request, answer, _):
        """Answers, and closes without a word, as servers do with connections that wait."""
        answer.whole(b"once")
        return False

    def do_websocket(self, request, answer, lines):
        answer.send(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nx-echo: "
                    + request.credential.encode() + b"\r\n\r\n")
        while piece := lines.read1(65536):
            if piece == b"key?":
                piece = request.credential.encode()
            answer.send(piece)
        return False


class Answer:
    def __init__(self, sock):
        self.sock = sock

    def send(self, data):
        self.sock.sendall(data)

    def begin(self, status=200, kind="text/plain", reason="Whatever", **headers):
        lines = [f"HTTP/1.1 {status} {reason}", f"content-type: {kind}"]
        self.send("\r\n".join(lines + [f"{k}: {v}" for k, v in headers.items()]).encode() + b"\r\n\r\n")

    def whole(self, body, status=200, kind="text/plain", **headers):
        self.begin(status, kind, **headers, **{"content-length": str(len(body))})
        self.send(body)

    def chunk(self, data):
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def end(self, **trailers):
        self.send(b"0\r\n" + b"".join(f"{k}: {v}\r\n".encode() for k, v in trailers.items()) + b"\r\n")
