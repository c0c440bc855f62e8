// The conformance suite's way into this library: one JSON request a line, one JSON answer a line. For tests only.

import { createInterface } from "node:readline";
import * as keyhatch from "../dist/index.mjs";
import { printed } from "./printed.mjs";

const client = new keyhatch.Client();
const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);
const base64 = (secret) => Buffer.from(secret.revealBytes()).toString("base64");

const verbs = {
  async get({ name, field, version, cache }) {
    const secret = await client.get(name, { field, version, cache });
    return { value: base64(secret), version: secret.version, name: secret.name, stale: secret.stale };
  },
  async list({ prefix }) {
    return { secrets: await client.list(prefix) };
  },
  async batch({ names }) {
    const { secrets, errors } = await client.batch(names);
    return { secrets: secrets.map((s) => ({ name: s.name, version: s.version, value: base64(s), stale: s.stale })), errors };
  },
  async whoami() {
    const { bot, uid } = await client.whoami();
    return { bot, uid };
  },
  async health() {
    return { status: (await client.health()).status };
  },
  async wait({ name, version, seconds }) {
    say({ ok: true, started: true });
    const secret = await client.waitForChange(name, version, seconds * 1000);
    return secret === undefined ? { changed: false } : { changed: true, version: secret.version, value: base64(secret) };
  },
  async watch({ names, count }) {
    const watch = client.watch(names);
    await watch.open();
    say({ ok: true, started: true });
    const events = [];
    for await (const change of watch) {
      events.push(change);
      if (events.length === count) break;
    }
    return { events };
  },
  async on_rotate({ name }) {
    await client.onRotate(name, (secret) => say({ rotated: name, version: secret.version }));
    return { started: true };
  },
  async loop({ name, reads, pause_ms }) {
    let failures = 0;
    let last_error = null;
    for (let read = 0; read < reads; read += 1) {
      try {
        await client.get(name);
      } catch (error) {
        failures += 1;
        last_error = String(error);
      }
      if (pause_ms > 0) await new Promise((resolve) => setTimeout(resolve, pause_ms));
    }
    return { reads, failures, last_error };
  },
  async use({ route, path, method, headers, body, stream }) {
    const response = await client.route(route).fetch(`http://upstream.example${path}`, { method, headers, body });
    if (!stream) return { status: response.status, route: response.headers.get("keyhatch-route"), body: await response.text() };
    for await (const piece of response.body) say({ ok: true, piece: Buffer.from(piece).toString() });
    return { end: true };
  },
  async print({ name }) {
    return { outputs: await printed(await client.get(name)) };
  },
  quit() {
    process.exit(0);
  },
};

async function answer(request) {
  try {
    return { ok: true, ...(await verbs[request.op](request)) };
  } catch (error) {
    if (!(error instanceof keyhatch.KeyhatchError)) throw error;
    const { kind, code, status, requestId, message } = error;
    return { error: kind, code, status, request_id: requestId, message };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  if (line.trim() !== "") say(await answer(JSON.parse(line)));
}
