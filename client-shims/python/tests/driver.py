"""Does what the conformance suite says, by the library's public API: one JSON object a line, in and out.

With `--asyncio` it does so by `AsyncClient`, whose event loop runs in a thread.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import keyhatch
import printing

_out = threading.Lock()
_kept: list[object] = []


class Awaited:
    """`AsyncClient` with the calls of `Client`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.client = keyhatch.AsyncClient()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.client, name)
        return lambda *args, **options: self.wait(method(*args, **options))

    def wait(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result()

    @contextlib.contextmanager
    def watch(self, *names: str) -> Iterator[Iterator[keyhatch.Change]]:
        watch = self.wait(self.client.watch(*names))
        yield iter(lambda: self.wait(watch.__anext__()), None)
        self.wait(watch.close())


def say(answer: dict[str, Any]) -> None:
    with _out:
        print(json.dumps(answer), flush=True)


def shown(secret: keyhatch.Secret) -> dict[str, Any]:
    value = base64.b64encode(secret.reveal_bytes()).decode()
    return {"name": secret.name, "version": secret.version, "value": value, "stale": secret.stale}


def get(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    options = {key: ask[key] for key in ("field", "version", "cache") if key in ask}
    return shown(client.get(ask["name"], **options))


def list_(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    listed = client.list(ask.get("prefix", ""))
    return {"secrets": [{"name": one.name, "version": one.version} for one in listed]}


def batch(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    got = client.batch(ask["names"])
    errors = [{"name": name, "code": code} for name, code in got.errors.items()]
    return {"secrets": [shown(secret) for secret in got.secrets.values()], "errors": errors}


def whoami(client: keyhatch.Client, _: dict[str, Any]) -> dict[str, Any]:
    me = client.whoami()
    return {"bot": me.bot, "uid": me.uid}


def health(client: keyhatch.Client, _: dict[str, Any]) -> dict[str, Any]:
    return {"status": client.health().status}


def watch(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    with client.watch(*ask["names"]) as changes:
        say({"ok": True, "started": True})
        events = [change._asdict() for _, change in zip(range(ask["count"]), changes)]
    return {"events": events}


def wait(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    say({"ok": True, "started": True})
    secret = client.wait_for_change(ask["name"], ask["version"], ask["seconds"])
    return {"changed": False} if secret is None else {"changed": True, **shown(secret)}


def on_rotate(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    name = ask["name"]
    _kept.append(client.on_rotate(name, lambda secret: say({"rotated": name, "version": secret.version})))
    return {"started": True}


def loop(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    failures, last_error = 0, None
    for _ in range(ask["reads"]):
        try:
            client.get(ask["name"]).reveal_bytes()
        except keyhatch.KeyhatchError as error:
            failures, last_error = failures + 1, str(error)
        time.sleep(ask["pause_ms"] / 1000)
    return {"reads": ask["reads"], "failures": failures, "last_error": last_error}


def use(_: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    route = keyhatch.route(ask["route"])
    answer = route.request(ask.get("method", "GET"), ask["path"], headers=ask.get("headers", {}), body=ask.get("body"))
    with answer:
        if ask.get("stream"):
            for piece in answer:
                say({"ok": True, "piece": piece.decode()})
            return {"end": True}
        return {"status": answer.status, "route": answer.headers["Keyhatch-Route"], "body": answer.read().decode()}


def print_(client: keyhatch.Client, ask: dict[str, Any]) -> dict[str, Any]:
    return {"outputs": printing.every_way(client.get(ask["name"]))}


OPS = {
    "get": get,
    "list": list_,
    "batch": batch,
    "whoami": whoami,
    "health": health,
    "wait": wait,
    "watch": watch,
    "on_rotate": on_rotate,
    "loop": loop,
    "use": use,
    "print": print_,
}


def kind(error: keyhatch.KeyhatchError) -> str:
    return "Name" if isinstance(error, keyhatch.InvalidName) else type(error).__name__


def main() -> None:
    client: Any = Awaited() if "--asyncio" in sys.argv else keyhatch.Client()
    for line in sys.stdin:
        ask = json.loads(line)
        if ask["op"] == "quit":
            return
        try:
            say({"ok": True, **OPS[ask["op"]](client, ask)})
        except keyhatch.KeyhatchError as error:
            told = {"code": error.code, "status": error.status, "request_id": error.request_id}
            say({"error": kind(error), **told, "message": str(error)})


if __name__ == "__main__":
    main()
