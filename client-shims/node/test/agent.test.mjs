// The library against a real agent.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { after, before, test } from "node:test";

import * as keyhatch from "../dist/index.mjs";
import { Agent } from "./agent.mjs";
import { printed } from "./printed.mjs";

const library = new URL("../dist/index.mjs", import.meta.url).href;
let agent;

before(async () => {
  agent = await Agent.started();
  process.env.KEYHATCH_SOCKET = agent.socket;
  agent.put("app/key", "CANARY-key");
  agent.put("app/bytes", Buffer.from([0xff, 0x00, 0x43]));
  agent.put("app/db", '{"password":"CANARY-db","port":5432.0}');
  agent.put("private/key", "CANARY-private");
  agent.deny("private/**");
});

after(() => agent.end());

const rejection = (promise) => promise.then(() => assert.fail("it was granted"), (error) => error);

test("values, fields and versions are read", async () => {
  const secret = await keyhatch.get("app/key");
  assert.ok(secret instanceof keyhatch.Secret);
  assert.deepEqual([secret.reveal(), secret.name, secret.stale], ["CANARY-key", "app/key", false]);
  assert.deepEqual([...(await keyhatch.get("app/bytes")).revealBytes()], [0xff, 0x00, 0x43]);
  assert.equal((await keyhatch.get("app/db", { field: "password" })).reveal(), "CANARY-db");
  assert.equal((await keyhatch.get("app/db#port")).reveal(), "5432.0");
  assert.equal((await keyhatch.get("app/db")).field("port").reveal(), "5432.0");
  agent.put("app/key", "CANARY-key2");
  const previous = await keyhatch.get("app/key", { version: "previous" });
  assert.deepEqual([previous.reveal(), previous.version], ["CANARY-key", secret.version]);
  assert.equal((await keyhatch.get("app/key", { version: secret.version })).reveal(), "CANARY-key");
});

test("what the agent gave is not shown by printing it", async () => {
  for (const text of await printed(await keyhatch.get("app/key"))) assert.ok(!text.includes("CANARY"), text);
});

test("absent and denied are errors of their own, with a request id", async () => {
  const absent = await rejection(keyhatch.get("app/none"));
  assert.ok(absent instanceof keyhatch.NotFoundError);
  const denied = await rejection(keyhatch.get("private/key"));
  assert.ok(denied instanceof keyhatch.DeniedError);
  assert.deepEqual([denied.code, denied.status], ["denied", 403]);
  assert.match(denied.requestId, /^[0-9a-f-]+$/);
  assert.ok((await rejection(keyhatch.watch("private/key").next())) instanceof keyhatch.DeniedError);
  assert.ok((await rejection(keyhatch.onRotate("private/key", () => {}))) instanceof keyhatch.DeniedError);
});

test("lists, batches, and who and how the agent says we are", async () => {
  for (let at = 0; at < 120; at += 1) if (at % 40 === 0) agent.put(`many/${at}`, `CANARY-${at}`);
  assert.deepEqual((await keyhatch.list("many/")).map(({ name }) => name), ["many/0", "many/40", "many/80"]);
  const names = Array.from({ length: 120 }, (_, at) => `many/${at}`);
  const { secrets, errors } = await keyhatch.batch([...names, "private/key", "a//b"]);
  assert.deepEqual(secrets.map((secret) => secret.reveal()), ["CANARY-0", "CANARY-40", "CANARY-80"]);
  assert.equal(errors.length, 119);
  assert.deepEqual(errors.slice(-2).map(({ code }) => code), ["denied", "bad_request"]);
  assert.equal((await keyhatch.whoami()).uid, process.getuid());
  assert.equal((await keyhatch.health()).status, "ready");
});

test("plain values under names of one's own, all or none", async () => {
  const env = await keyhatch.env({ KEY: "app/key", PGPASSWORD: "app/db#password" });
  assert.deepEqual(env, { KEY: "CANARY-key2", PGPASSWORD: "CANARY-db" });
  assert.equal((await rejection(keyhatch.env({ KEY: "app/key", OTHER: "app/none" }))).kind, "NotFound");
});

test("fetch speaks to the agent", async () => {
  const answer = await keyhatch.fetch("/v1/whoami");
  assert.equal((await answer.json()).bot, "me");
  assert.equal((await keyhatch.fetch("http://keyhatch/v1/secrets/app/none")).status, 404);
});

test("a rotation reaches a watch, onRotate and the cache, over a restart too", async () => {
  const client = new keyhatch.Client();
  const rotations = [];
  let told;
  const next = () => new Promise((resolve) => (told = resolve));
  const stop = await client.onRotate("app/turn", (secret) => told(rotations.push(secret.reveal())));
  const watch = client.watch(["app/turn"]);
  assert.deepEqual((await watch.next()).value, { kind: "current", name: "app/turn", version: null });
  let turned = next();
  agent.put("app/turn", "CANARY-1");
  await turned;
  assert.equal((await watch.next()).value.kind, "rotated");
  assert.equal((await client.get("app/turn", { cache: true })).reveal(), "CANARY-1");
  await agent.restart();
  turned = next();
  agent.put("app/turn", "CANARY-2");
  await turned;
  assert.equal((await watch.next()).value.kind, "rotated");
  agent.remove("app/turn");
  assert.deepEqual((await watch.next()).value, { kind: "removed", name: "app/turn", version: null });
  turned = next();
  agent.put("app/turn", "CANARY-3");
  await turned;
  for (let text = ""; text !== "CANARY-3"; ) text = (await client.get("app/turn", { cache: true })).reveal();
  assert.deepEqual(rotations, ["CANARY-1", "CANARY-2", "CANARY-3"]);
  stop();
  await watch.return();
  client.close();
});

test("no read fails while the agent restarts, gently or not", async () => {
  const client = new keyhatch.Client();
  const reads = [0, 0, 0, 0];
  let over = false;
  const reading = reads.map(async (_, reader) => {
    for (; !over; reads[reader] += 1) await client.get("app/key");
  });
  for (let turn = 1; turn <= 20; turn += 1) {
    await agent.restart(turn % 2 ? "SIGKILL" : "SIGTERM");
    const wanted = reads.map((count) => count + 10);
    while (reads.some((count, reader) => count < wanted[reader])) await Promise.race([new Promise(setImmediate), ...reading]);
  }
  over = true;
  await Promise.all(reading);
  client.close();
});

test("what onRotate calls may throw: that goes to onError, and the next rotation comes", async () => {
  const client = new keyhatch.Client();
  const errors = [];
  let told;
  const next = () => new Promise((resolve) => (told = resolve));
  const onError = (error) => told(errors.push(error.message));
  const stop = await client.onRotate("app/throws", (secret) => { throw new Error(secret.version.slice(0, 1)); }, { onError });
  for (const turn of ["1", "2"]) {
    const thrown = next();
    agent.put("app/throws", `CANARY-${turn}`);
    await thrown;
  }
  assert.deepEqual(errors, ["1", "2"]);
  stop();
});

test("neither kept connections, nor onRotate, nor the cache keep a process alive; onRotate does where asked", async () => {
  const script = `
    import * as keyhatch from ${JSON.stringify(library)};
    await keyhatch.get("app/key", { cache: true });
    const ref = process.argv[1] === "ref";
    const stop = await keyhatch.onRotate("app/key", () => { console.log("rotated"); stop(); }, { ref });
    console.log("ready");`;
  const lines = async (argument, ready = () => {}) => {
    const words = ["--input-type=module", "-e", script, argument];
    const child = spawn(process.execPath, words, { stdio: ["ignore", "pipe", "inherit"] });
    const seen = [];
    for await (const line of createInterface({ input: child.stdout })) {
      seen.push(line);
      if (line === "ready") ready();
    }
    return seen;
  };
  assert.deepEqual(await lines("no"), ["ready"]);
  assert.deepEqual(await lines("ref", () => agent.put("app/key", "CANARY-turned")), ["ready", "rotated"]);
});

test("require and import give the same module", () => {
  const required = createRequire(import.meta.url)("../dist/index.js");
  assert.equal(required.Secret, keyhatch.Secret);
  assert.equal(required.get, keyhatch.default.get);
});

test("a sealed agent is told as such", async () => {
  agent.seal();
  assert.ok((await rejection(keyhatch.get("app/key"))) instanceof keyhatch.SealedError);
  assert.equal((await keyhatch.health()).status, "unavailable");
});
