"""What the conformance cases are made of: the driver of a library, servers that are no agent, and matchers of answers."""

import base64
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

from harness import ALICE, BOB, ROOT

SHIMS = ROOT / "client-shims"
LANGUAGES = ["python", "python-asyncio", "node", "go", "rust"]
# Any operation ends within this, or it hangs: the longest waits are the libraries' own time limits.
PATIENCE = 60


def command(language):
    """How the driver of a library is started; a driver that is not there fails its tests."""
    if language.startswith("python"):
        driver = SHIMS / "python" / "tests" / "driver.py"
        done = [python(), str(driver), *(["--asyncio"] if language.endswith("asyncio") else [])]
    elif language == "node":
        driver = SHIMS / "node" / "test" / "driver.mjs"
        done = ["node", str(driver)]
    elif language == "go":
        driver = SHIMS / "go" / "internal" / "driver"
        done = [str(build_go())] if driver.exists() else []
    else:
        built = [ROOT / "target" / profile / "examples" / "driver" for profile in ("debug", "release")]
        driver = max(built, key=lambda path: path.stat().st_mtime if path.exists() else 0)
        done = [str(driver)]
    assert driver.exists(), f"the {language} library has no driver: {driver} is missing"
    return done


def python():
    """A Python that a bot may run: the one that runs the tests may lie in root's home."""
    for candidate in [sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"]:
        try:
            subprocess.run([candidate, "-c", ""], user=ALICE, group=ALICE, extra_groups=[], check=True, cwd="/")
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    raise AssertionError("no Python here may be run by another user")


def build_go():
    path = ROOT / "target" / "go-driver"
    tools = os.pathsep.join([str(ROOT / "target" / "venv" / "bin"), os.environ["PATH"]])
    subprocess.run(["go", "build", "-o", str(path), "./internal/driver"], cwd=SHIMS / "go", check=True, timeout=600,
                   env=os.environ | {"PATH": tools})
    return path


class Driver:
    """A library's driver program, run as a bot. What it says must never hold a value outside of `value`."""

    def __init__(self, command, socket_path, uid=ALICE, env=None):
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(SHIMS / "python" / "src"), "PYTHONDONTWRITEBYTECODE": "1",
               "HOME": "/", "KEYHATCH_SOCKET": str(socket_path), **(env or {})}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                        user=uid, group=uid, extra_groups=[], env=env, cwd="/", text=True)
        self.answers, self.rotations, self.errors = queue.Queue(), queue.Queue(), []
        threading.Thread(target=self.read, daemon=True).start()
        threading.Thread(target=self.read_errors, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            answer = json.loads(line)
            (self.rotations if "rotated" in answer else self.answers).put(answer)
        self.answers.put(None)

    def read_errors(self):
        self.errors.extend(self.process.stderr)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None:
                self.say({"op": "quit"})
                assert self.process.wait(timeout=PATIENCE) == 0, self.errors
                assert "CANARY" not in "".join(self.errors), self.errors
        finally:
            self.process.kill()
            self.process.wait()

    def say(self, request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def ask(self, request):
        self.say(request)
        return self.hear()

    def hear(self, rotation=False):
        try:
            answer = (self.rotations if rotation else self.answers).get(timeout=PATIENCE)
        except queue.Empty:
            raise AssertionError(f"no answer within {PATIENCE} s; it said {self.errors}") from None
        assert answer is not None, f"the driver ended and said {self.errors}"
        assert "CANARY" not in str(answer.get("message")) + str(answer.get("last_error")), answer
        return answer


class Fake:
    """A server of this process that gives the answers of a case, one for each request, the last one for ever."""

    def __init__(self, folder, answers):
        self.path, self.listener = listen(folder)
        self.answers, self.given, self.connections = answers, 0, 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                peer, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer):
        with peer:
            while request := head_of(peer):
                with self.lock:
                    answer = self.answers[min(self.given, len(self.answers) - 1)]
                    self.given += 1
                try:
                    peer.sendall(rendered(answer, request))
                    while "endless" in answer:
                        peer.sendall(answer["piece"].encode() * 4096)
                    if answer.get("then") == "hold":
                        peer.recv(1)
                except OSError:
                    return
                if "then" in answer:
                    return

    def stop(self):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


class Stranger:
    """Another user than the agent's, who has come to listen at its socket; it notes whatever it hears."""

    def __init__(self, folder):
        folder.chmod(0o777)
        ready, tell = os.pipe()
        self.heard = folder / "heard"
        self.path = folder / "keyhatch.sock"
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.listen(tell)
            finally:
                os._exit(1)
        os.close(tell)
        assert os.read(ready, 1)
        os.close(ready)
        folder.chmod(0o755)

    def listen(self, tell):
        os.setgroups([])
        os.setresgid(BOB, BOB, BOB)
        os.setresuid(BOB, BOB, BOB)
        with open(self.heard, "wb", buffering=0) as heard:
            _, listener = listen(self.path.parent)
            os.write(tell, b"x")
            while True:
                peer, _ = listener.accept()
                heard.write(b"connected\n" + peer.recv(65536))

    def stop(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def listen(folder):
    path = Path(folder) / "keyhatch.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    path.chmod(0o666)
    listener.listen(64)
    return path, listener


def head_of(peer):
    """The head of a request without a body; nothing at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        try:
            piece = peer.recv(1)
        except OSError:
            return b""
        if not piece:
            return b""
        head += piece
    return head


def rendered(answer, request):
    """The bytes of an answer in a case."""
    if "endless" in answer or "raw" in answer:
        return answer.get("endless", answer.get("raw")).encode()
    if "value" in answer:
        return value_answer(answer, request)
    if "problem" in answer:
        body = {"type": "t", "title": "t", "status": answer["status"], "code": answer["problem"], "request_id": "r-1"}
        close = "Connection: close\r\n" if answer.get("then") == "close" else ""
        return reply(json.dumps(body).encode(), answer["status"], f"Content-Type: application/problem+json\r\n{close}")
    if "body" in answer:
        return reply(json.dumps(answer["body"]).encode(), 200, "Content-Type: application/json\r\n")
    if "text" in answer:
        return reply(answer["text"].encode(), answer.get("status", 200), "Content-Type: text/html\r\n")
    return b""


def value_answer(answer, request):
    value = bytes_of(answer["value"])
    if b"octet-stream" in request:
        return reply(value, 200, 'ETag: "1-a"\r\nKeyhatch-Version: 1-a\r\nContent-Type: application/octet-stream\r\n')
    document = {"name": "app/key", "version": "1-a", "value": value.decode(), "updated_at": "2026-01-01T00:00:00Z",
                "source": "local", "stale": answer.get("stale", False)}
    return reply(json.dumps(document).encode(), 200, 'ETag: "1-a"\r\nContent-Type: application/json\r\n')


def reply(body, status, headers):
    return f"HTTP/1.1 {status} x\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def bytes_of(value):
    """A value as the cases write it."""
    one = base64.b64decode(value["base64"]) if "base64" in value else value["text"].encode()
    return one * value.get("times", 1)


class Match:
    """What answers must be, and what the case remembers of them."""

    def __init__(self, cases):
        self.secrets, self.many, self.known = cases["secrets"], cases["many"], {}

    def fill(self, request):
        """A request as it is sent, its references resolved."""
        if isinstance(request, list):
            return [self.fill(one) for one in request]
        if not isinstance(request, dict):
            return request
        if "$ref" in request:
            return self.known[request["$ref"]]
        if "$repeat" in request:
            return request["$repeat"] * request["times"]
        if "$many" in request:
            return many_names(self.many)[: request["$many"]]
        return {key: self.fill(one) for key, one in request.items()}

    def wrong(self, want, got, at="answer"):
        """Where and how `got` is not what is wanted; nothing where it is."""
        if isinstance(want, dict) and any(key.startswith("$") for key in want):
            good = all(getattr(self, f"is_{key[1:]}")(one, want, got) for key, one in want.items() if key[0] == "$")
            return None if good else f"{at}: {short(got)} is not {short(want)}"
        if isinstance(want, dict) and isinstance(got, dict):
            told = (self.wrong(one, got.get(key, "(nothing)"), f"{at}.{key}") for key, one in want.items())
            return next(filter(None, told), None)
        if isinstance(want, list) and isinstance(got, list) and len(want) == len(got):
            told = (self.wrong(one, got[n], f"{at}[{n}]") for n, one in enumerate(want))
            return next(filter(None, told), None)
        return None if want == got and type(want) is type(got) else f"{at}: {short(got)} is not {short(want)}"

    def is_value(self, value, _, got):
        return got == base64.b64encode(bytes_of(value)).decode()

    def is_secret(self, name, _, got):
        return self.is_value(self.secrets[name], _, got)

    def is_one_of(self, words, _, got):
        return got in words

    def is_text(self, _, __, got):
        return isinstance(got, str) and got != ""

    def is_count(self, count, _, got):
        names = [one["name"] for one in got] if isinstance(got, list) else []
        return len(names) == len(set(names)) == count and names == sorted(names)

    def is_as(self, key, _, got):
        return self.is_text(None, None, got) and self.known.setdefault(key, got) == got

    def is_not(self, key, _, got):
        return self.is_text(None, None, got) and self.known[key] != got

    def is_hides(self, name, want, got):
        """Enough outputs, none of which shows the value in a form that we know to look for."""
        value = bytes_of(self.secrets[name])
        shown = [value.decode(), base64.b64encode(value).decode().rstrip("="), value.hex(), value.hex(" "),
                 ", ".join(map(str, value)), " ".join(map(str, value)), ",".join(map(str, value)), "CANARY"]
        shown += [text.upper() for text in shown]
        texts = [one for one in got if isinstance(one, str)] if isinstance(got, list) else []
        for text in texts:
            assert not any(form in text for form in shown), f"it is shown: {text}"
        return len(texts) >= want["ways"]


def many_names(many):
    return [f"{many['prefix']}{n:04}" for n in range(many["count"])]


def short(what):
    text = json.dumps(what)
    return text if len(text) < 500 else text[:500] + "..."
