// Answers that are late, broken, refused or from an agent that restarts.

import assert from "node:assert/strict";
import { test } from "node:test";
import { inspect } from "node:util";

import * as keyhatch from "../dist/index.mjs";
import { EventParser } from "../dist/events.js";
import { Retry, backoff } from "../dist/pause.js";
import { EVENTS, Fake, event, reply, value } from "./fake.mjs";

async function serve(t, answer, options) {
  const fake = await Fake.started(answer);
  const client = new keyhatch.Client({ socket: fake.socket, ...options });
  t.after(() => {
    client.close();
    return fake.end();
  });
  return { fake, client };
}

const rejection = (promise) => promise.then(() => assert.fail("it was granted"), (error) => error);

test("each code has its error, with code, status and request id", async (t) => {
  const codes = {
    denied: [403, "Denied"],
    quarantined: [403, "Quarantined"],
    not_found: [404, "NotFound"],
    sealed: [503, "Sealed"],
    upstream_unavailable: [503, "Unavailable"],
    audit_unavailable: [503, "Unavailable"],
    rate_limited: [429, "RateLimited"],
    bad_request: [400, "BadRequest"],
    internal: [500, "Failed"],
    in_grace: [409, "Failed"],
    "new\ncode": [418, "Failed"],
  };
  const problem = (code) => ({ title: "t", detail: "say\n\x1b[31mmore", code, request_id: "r-1" });
  const { client } = await serve(t, (connection, head) => {
    const code = Object.keys(codes)[Number(/secrets\/(\d+)/.exec(head)[1])];
    connection.write(reply(codes[code][0], problem(code), "Retry-After: 7\r\n"));
  });
  for (const [at, [code, [status, kind]]] of Object.entries(codes).entries()) {
    const error = await rejection(client.get(String(at)));
    assert.ok(error instanceof keyhatch[`${kind}Error`] && error instanceof keyhatch.KeyhatchError);
    const told = [error.kind, error.name, error.code, error.status, error.requestId];
    assert.deepEqual(told, [kind, `${kind}Error`, code.replace("\n", "\ufffd"), status, "r-1"]);
    assert.match(error.message, /^say\ufffd\ufffd\[31mmore \(.*, request r-1\)$/);
    assert.match(error.stack, new RegExp(`^${kind}Error: say`));
    if (kind === "RateLimited") assert.equal(error.retryAfter, 7000);
  }
});

test("an answer without a problem document is judged by its status", async (t) => {
  const kinds = {
    400: "BadRequest", 403: "Denied", 404: "NotFound", 429: "RateLimited", 503: "Unavailable", 302: "Failed", 500: "Failed",
  };
  const { client } = await serve(t, (connection, head) => {
    connection.write(reply(/secrets\/(\d+)/.exec(head)[1], "<html>CANARY</html>"));
  });
  for (const [status, kind] of Object.entries(kinds)) {
    const error = await rejection(client.get(status));
    assert.deepEqual([error.kind, error.code, error.status], [kind, null, Number(status)]);
    assert.ok(!inspect(error, { showHidden: true }).includes("CANARY"));
  }
});

test("what is no agent's answer is an error that does not quote it", async (t) => {
  const json = (document) => reply(200, document);
  const answers = [
    "CANARY is not HTTP\r\n\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: CANARY\r\n\r\n",
    `HTTP/1.1 200 OK\r\nX: CANARY${"x".repeat(9000)}\r\n\r\n`,
    json("CANARY"),
    json('"CANARY"'),
    json("[]"),
    json({ value: "CANARY" }),
    json({ version: "1" }),
    json({ version: 1, value: "CANARY" }),
    json({ version: "1", value: { x: "CANARY" } }),
    json({ version: "1", value: "CANARY", value_base64: "Q0FO" }),
    json({ version: "1", value_base64: "CANARY!" }),
    json({ version: "1", value: `CANARY${"x".repeat(420_000)}` }),
  ];
  const { client } = await serve(t, (connection, head) => {
    connection.end(answers[Number(/secrets\/(\d+)/.exec(head)[1])]);
  });
  for (const at of answers.keys()) {
    const error = await rejection(client.get(String(at)));
    assert.ok(error instanceof keyhatch.ProtocolError, `${at}: ${error}`);
    const shown = inspect(error, { showHidden: true, depth: Infinity });
    assert.ok(!shown.includes("CANARY") && !shown.includes("43 41 4e"), shown);
  }
});

test("a call ends after its time, or with its signal", async (t) => {
  const { fake, client } = await serve(t, (connection, head) => {
    if (head.includes("/half")) connection.write("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nCAN");
  });
  for (const name of ["none", "half"]) {
    const late = await rejection(client.get(name, { timeout: 50 }));
    assert.ok(late instanceof keyhatch.TimedOutError, String(late));
    assert.match(late.message, /within 50 ms/);
    const stop = new AbortController();
    const reading = rejection(client.get(name, { signal: stop.signal }));
    setImmediate(() => stop.abort());
    assert.equal(await reading, stop.signal.reason);
  }
  const before = fake.seen.length;
  assert.equal((await rejection(client.get("x", { signal: AbortSignal.abort() }))).name, "AbortError");
  assert.equal(fake.seen.length, before);
});

test("names are checked before anything is sent", async (t) => {
  const { fake, client } = await serve(t, (connection) => connection.write(value("a", "CANARY-1")));
  const bad = ["", "/a", "a/", "a//b", "a/../b", ".", "a b", "a%2fb", "é", "a\nb", "x".repeat(513), undefined, 7, "#f"];
  for (const name of bad) {
    assert.ok((await rejection(client.get(name))) instanceof keyhatch.NameError, String(name));
    assert.throws(() => client.watch([name]), keyhatch.NameError);
    assert.ok((await rejection(client.onRotate(name, () => {}))) instanceof keyhatch.NameError);
  }
  assert.throws(() => client.watch([]), keyhatch.NameError);
  assert.equal(fake.connections, 0);
  await client.get("a+b/c=@_.-9", { field: "p w&ü\ud800", version: "previous" });
  assert.match(fake.seen[0], /^GET \/v1\/secrets\/a\+b\/c=@_\.-9\?version=previous&field=p%20w%26%C3%BC%EF%BF%BD HTTP\/1\.1\r\n/);
});

test("a connection is kept, and replaced where it has died", async (t) => {
  const { fake, client } = await serve(t, (connection, head, number) => {
    connection.write(value("a", `CANARY-${number}`));
    if (number === 3) connection.end();
  });
  for (let read = 1; read <= 3; read += 1) assert.equal((await client.get("a")).reveal(), `CANARY-${read}`);
  assert.equal(fake.connections, 1);
  assert.equal((await client.get("a")).reveal(), "CANARY-4");
  assert.equal(fake.connections, 2);
});

test("a read is asked again where the agent goes before it has answered", async (t) => {
  const cut = [
    "",
    "HTTP/1.1 200 OK\r\nContent-Le",
    'HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"na',
    reply(503, { code: "sealed" }, "Connection: close\r\n"),
  ];
  const { fake, client } = await serve(t, (connection, head, number) => {
    if (number > cut.length) connection.write(value("a", "CANARY-1"));
    else connection.end(cut[number - 1]);
  });
  assert.equal((await client.get("a")).reveal(), "CANARY-1");
  assert.equal(fake.seen.length, cut.length + 1);
});

test("a 503 of an agent that stays is not asked again", async (t) => {
  const { fake, client } = await serve(t, (connection) => connection.write(reply(503, { code: "sealed" })));
  assert.equal((await rejection(client.get("a"))).kind, "Sealed");
  assert.equal(fake.seen.length, 1);
});

test("nobody listens: an error in the end, and not after the call's time", async (t) => {
  const { fake, client } = await serve(t, () => {});
  await fake.stop();
  const error = await rejection(client.get("a", { timeout: 60 }));
  assert.ok(error instanceof keyhatch.UnreachableError, String(error));
  assert.match(error.message, /keyhatch\.sock: (there is no such socket|nobody listens there) \(E/);
  assert.ok(error.temporary);
});

test("reads wait for an agent that comes back", async (t) => {
  const { fake, client } = await serve(t, (connection) => connection.write(value("a", "CANARY-1")));
  await client.get("a");
  await fake.stop();
  const reads = Promise.all(Array.from({ length: 40 }, () => client.get("a")));
  await fake.listen((connection) => connection.write(value("a", "CANARY-2")));
  for (const secret of await reads) assert.equal(secret.reveal(), "CANARY-2");
});

test("a list that does not come to an end is refused", async (t) => {
  const page = reply(200, { secrets: [{ name: "a", version: "1" }], next: "a" });
  const { client } = await serve(t, (connection) => connection.write(page));
  assert.ok((await rejection(client.list())) instanceof keyhatch.ProtocolError);
});

test("health is told with 503 as well", async (t) => {
  const sealed = reply(503, { status: "unavailable", reasons: ["sealed"], missing: [] });
  const { client } = await serve(t, (connection) => connection.write(sealed));
  assert.deepEqual((await client.health()).reasons, ["sealed"]);
});

test("a watch goes on where it was, and ends with what waiting does not heal", async (t) => {
  const { fake, client } = await serve(t, (connection, head, number) => {
    if (number === 1) connection.write(EVENTS + event("current", "a", "1", "1,-") + event("current", "b", null, "1,-"));
    if (number === 2) connection.end(reply(503, { code: "sealed" }));
    if (number === 3) connection.write(`${EVENTS}5\r\n: hi\n\r\n${event("new-kind", "a", "9")}${event("rotated", "a", "2", "2,-")}`);
    if (number === 4) connection.end(reply(403, { code: "denied", request_id: "r-4" }));
    if (number === 1 || number === 3) connection.end();
  });
  const seen = [];
  const error = await rejection((async () => {
    for await (const change of client.watch(["a", "b"])) seen.push(`${change.kind} ${change.name} ${change.version}`);
  })());
  assert.deepEqual(seen, ["current a 1", "current b null", "rotated a 2"]);
  assert.deepEqual([error.kind, error.requestId], ["Denied", "r-4"]);
  assert.match(fake.seen[0], /^GET \/v1\/watch\?name=a&name=b HTTP/);
  assert.deepEqual(fake.seen.map((head) => /last-event-id: (.*)/i.exec(head)?.[1]), [undefined, "1,-", "1,-", "2,-"]);
});

test("a watch ends by break, by its signal and by return", async (t) => {
  const { client } = await serve(t, (connection) => connection.write(EVENTS + event("current", "a", "1")));
  for await (const change of client.watch("a")) {
    assert.equal(change.version, "1");
    break;
  }
  const stop = new AbortController();
  const watch = client.watch("a", { signal: stop.signal });
  await watch.next();
  const next = rejection(watch.next());
  stop.abort(new Error("enough"));
  assert.equal((await next).message, "enough");
  assert.deepEqual(await watch.next(), { value: undefined, done: true });
  const other = client.watch("a");
  await other.open();
  await other.next();
  const pending = other.next();
  await other.return();
  assert.deepEqual(await pending, { value: undefined, done: true });
  assert.equal((await rejection(client.watch("a", { signal: AbortSignal.abort() }).next())).name, "AbortError");
});

test("a watch is not answered with a document", async (t) => {
  const { client } = await serve(t, (connection) => connection.write(value("a", "CANARY-1")));
  assert.ok((await rejection(client.watch("a").next())) instanceof keyhatch.ProtocolError);
});

test("the cache is used only while its watch is open", async (t) => {
  let version = "1";
  let watcher;
  const { fake, client } = await serve(t, (connection, head) => {
    if (!head.startsWith("GET /v1/watch")) return connection.write(value("a", `CANARY-${version}`, version));
    watcher = connection;
    connection.write(EVENTS + event("current", "a", version));
  });
  const reads = () => fake.seen.filter((head) => head.startsWith("GET /v1/secrets")).length;
  const cached = async () => {
    const before = reads();
    const text = (await client.get("a", { cache: true })).reveal();
    return { text, asked: reads() - before };
  };
  const until = async (asked, text) => {
    for (let got = await cached(); got.asked !== asked || got.text !== text; got = await cached()) await new Promise(setImmediate);
  };
  await until(0, "CANARY-1");
  version = "2";
  watcher.write(event("rotated", "a", "2"));
  await until(1, "CANARY-2");
  await until(0, "CANARY-2");
  watcher.destroy();
  await until(1, "CANARY-2");
  await until(0, "CANARY-2");
  const before = reads();
  await client.get("a");
  assert.equal(reads(), before + 1);
});

test("onRotate begins over a restart as well, and within its time", async (t) => {
  const cut = [EVENTS, "HTTP/1.1 403 x\r\nContent-Length: 9\r\n\r\n{", `${EVENTS}9\r\nid: `];
  const { fake, client } = await serve(t, (connection, head, number) => {
    if (number <= cut.length) connection.end(cut[number - 1]);
    else if (number === 4) connection.write(EVENTS + event("current", "a", "1"));
    else connection.write(EVENTS);
  });
  (await client.onRotate("a", () => {}))();
  assert.equal(fake.seen.length, 4);
  const impatient = new keyhatch.Client({ socket: fake.socket, timeout: 50 });
  assert.ok((await rejection(impatient.onRotate("a", () => {}))) instanceof keyhatch.TimedOutError);
  const stop = new AbortController();
  const beginning = rejection(client.onRotate("a", () => {}, { signal: stop.signal }));
  stop.abort(new Error("enough"));
  assert.equal((await beginning).message, "enough");
});

test("onRotate tells each new version once, over connections that are lost", async (t) => {
  const versions = ["1", "1", "2", "2", null, "3", "1"];
  let at = 0;
  const { client } = await serve(t, (connection, head) => {
    if (!head.startsWith("GET /v1/watch")) return connection.write(value("a", "CANARY", versions[at - 1]));
    const told = EVENTS + event("current", "a", versions[at]);
    at += 1;
    if (at < versions.length) connection.end(told);
    else connection.write(told);
  });
  const seen = [];
  await new Promise((resolve, reject) => {
    const rotated = ({ version }) => seen.push(version) === 3 && resolve();
    client.onRotate("a", rotated, { ref: true }).catch(reject);
  });
  assert.deepEqual(seen, ["2", "3", "1"]);
});

test("one signal for many calls and watches is no cause for a warning", async (t) => {
  const { client } = await serve(t, (connection, head) => {
    connection.write(head.startsWith("GET /v1/watch") ? EVENTS + event("current", "a", "1") : value("a", "CANARY-1"));
  });
  const warnings = [];
  const warned = (warning) => warnings.push(warning.name);
  process.on("warning", warned);
  const stop = new AbortController();
  await Promise.all(Array.from({ length: 20 }, (_, at) => client.get(`a${at}`, { signal: stop.signal, cache: true })));
  await Promise.all(Array.from({ length: 20 }, () => client.onRotate("a", () => {}, { signal: stop.signal })));
  stop.abort();
  await new Promise(setImmediate);
  process.off("warning", warned);
  assert.deepEqual(warnings, []);
});

test("fetch takes paths and keyhatch URLs, bodies and streams, and leaves the rest to its caller", async (t) => {
  const { fake, client } = await serve(t, (connection, head, number, body) => {
    connection.write(reply(head.startsWith("GET") ? 418 : 200, { body }, "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\n"));
  });
  const tea = await client.fetch("/v1/use/openai/v1/models?x=1");
  assert.ok(tea instanceof Response);
  assert.deepEqual([tea.status, tea.ok, tea.url], [418, false, "http://keyhatch/v1/use/openai/v1/models?x=1"]);
  assert.equal(tea.headers.get("set-cookie"), "a=1, b=2");
  const headers = { "Content-Type": "application/json", Host: "evil" };
  const posted = await client.fetch("http://keyhatch/v1/x", { method: "POST", body: '{"n":1}', headers });
  assert.deepEqual(await posted.json(), { body: '{"n":1}' });
  assert.match(fake.seen[1], /^POST \/v1\/x HTTP[^]*\r\nhost: keyhatch\r\n/);
  assert.match(fake.seen[1], /content-type: application\/json/);
  assert.ok(!fake.seen[1].includes("evil"));
  const request = new Request("http://keyhatch/v1/y", { method: "PUT", body: "CANARY" });
  assert.deepEqual(await (await client.fetch(request)).json(), { body: "CANARY" });
  for (const elsewhere of ["http://example.com/", "https://keyhatch/", "//example.com/x", "http://keyhatch:81/"]) {
    await assert.rejects(client.fetch(elsewhere), TypeError);
  }
  assert.equal(fake.seen.length, 3);
});

test("fetch streams both ways, and ends with its signal", async (t) => {
  const { client } = await serve(t, (connection, head, number) => {
    if (number === 1) connection.write(`${EVENTS}1\r\na\r\n`);
    else connection.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
  });
  const stop = new AbortController();
  const body = new ReadableStream({ start: (to) => { to.enqueue(Buffer.from("piece")); to.close(); } });
  const answer = await client.fetch("/v1/x", { method: "POST", body, duplex: "half", signal: stop.signal });
  const reader = answer.body.getReader();
  assert.equal(Buffer.from((await reader.read()).value).toString(), "a");
  const rest = rejection(reader.read());
  stop.abort();
  assert.equal((await rest).name, "AbortError");
  const half = await client.fetch("/v1/x");
  const reading = rejection(half.text());
  client.close();
  assert.ok((await reading) instanceof Error);
});

test("fetch does not send a request twice that may have had its effect", async (t) => {
  const { fake, client } = await serve(t, (connection) => connection.end());
  assert.equal((await rejection(client.fetch("/v1/rotate/a", { method: "POST" }))).kind, "Unreachable");
  assert.equal(fake.seen.length, 1);
});

test("events are read from pieces of any size", () => {
  const text = ': note\r\nid: 1\nevent: rotated\ndata: {"a":"é"}\ndata:x\r\n\r\nretry: 3\n\nid:bad id\ndata: y\n\n';
  for (let size = 1; size <= text.length; size += 1) {
    const parser = new EventParser();
    const bytes = Buffer.from(text);
    const events = [];
    for (let at = 0; at < bytes.length; at += size) events.push(...parser.push(bytes.subarray(at, at + size)));
    assert.deepEqual(events, [{ id: "1", kind: "rotated", data: '{"a":"é"}\nx' }, { id: undefined, kind: "", data: "y" }]);
  }
  assert.throws(() => new EventParser().push(Buffer.alloc(17_000, "x")), keyhatch.ProtocolError);
  assert.throws(() => new EventParser().push(Buffer.from("data: xxxxxxxxx\n".repeat(2000))), keyhatch.ProtocolError);
});

test("pauses grow, stay bounded, and keep to what the agent asks for", () => {
  for (let failures = 0; failures < 50; failures += 1) {
    for (const chance of [0, 0.5, 0.999]) {
      const pause = backoff(failures, chance);
      assert.ok(pause >= 50 && pause <= 10_000 && (failures < 8 || pause >= 5_000));
    }
  }
  const limited = new keyhatch.RateLimitedError("", { code: "rate_limited", status: 429, requestId: null }, 70_000);
  assert.equal(new Retry().pause(limited), 70_000);
  assert.equal(new Retry().pause(new keyhatch.DeniedError("")), 60_000);
});
