// A secret is read by reveal() alone; no other way shows it.

import assert from "node:assert/strict";
import { readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { inspect } from "node:util";
import v8 from "node:v8";
import { MessageChannel, receiveMessageOnPort } from "node:worker_threads";

import { NoFieldError, NotTextError, Secret } from "../dist/index.mjs";
import { printed } from "./printed.mjs";

const CANARY = "CANARY-0123456789";

/** The value as text, as the numbers of its bytes, in base64 and in hexadecimal. */
const SHAPES = [
  "CANARY",
  [...Buffer.from(CANARY)].slice(0, 4).join(","),
  [...Buffer.from(CANARY)].slice(0, 4).join(", "),
  Buffer.from(CANARY).toString("base64").slice(0, 8),
  Buffer.from(CANARY).toString("hex").slice(0, 12),
  "43 41 4e 41",
];

test("no way of printing shows a secret or a field of one", async () => {
  for (const secret of [
    new Secret("app/key", "v1", CANARY),
    new Secret("app/key", "v1", Buffer.from(`${CANARY}\xff`, "latin1")),
    new Secret("app/key", "v1", `{"password":"${CANARY}"}`),
    new Secret("app/key", "v1", `{"password":"${CANARY}"}`).field("password"),
  ]) {
    const ways = await printed(secret);
    assert.ok(ways.length >= 48);
    for (const [at, text] of ways.entries()) {
      assert.equal(typeof text, "string");
      for (const shape of SHAPES) assert.ok(!text.includes(shape), `way ${at} shows ${shape}: ${text}`);
    }
  }
});

test("what is shown names the secret", () => {
  const secret = new Secret("app/key", "v1", CANARY);
  assert.equal(`${secret}`, "[secret app/key: reveal() gives its value]");
  assert.equal(inspect(secret), `${secret}`);
  assert.equal(JSON.stringify({ secret }), '{"secret":"[secret app/key: reveal() gives its value]"}');
  assert.ok(Number.isNaN(+secret));
});

test("a copy for another thread is without its value", () => {
  const { port1, port2 } = new MessageChannel();
  port1.postMessage(new Secret("app/key", "v1", CANARY));
  const { message } = receiveMessageOnPort(port2);
  assert.deepEqual(message, { name: "app/key", version: "v1", stale: false });
  assert.throws(() => Secret.prototype.reveal.call(message), TypeError);
  assert.throws(() => Secret.prototype.reveal.call(v8.deserialize(v8.serialize(message))), TypeError);
  port1.close();
});

test("a heap snapshot does not hold a value that was not revealed as text", () => {
  const secret = new Secret("app/key", "v1", Buffer.from([..."YRANAC"].reverse().join("") + "-snapshot"));
  const file = v8.writeHeapSnapshot(join(tmpdir(), `keyhatch-node-${process.pid}.heapsnapshot`));
  const wanted = ["CANARY", "snapshot"].join("-");
  const found = readFileSync(file, "utf8").includes(wanted);
  rmSync(file);
  assert.ok(!found);
  assert.equal(secret.reveal(), wanted);
});

test("the value is given exactly, as text and as bytes", () => {
  const secret = new Secret("app/key", "v1", "\ufeffCANARY-é\n");
  assert.equal(secret.reveal(), "\ufeffCANARY-é\n");
  const bytes = secret.revealBytes();
  bytes.fill(0);
  assert.equal(Buffer.from(secret.revealBytes()).toString(), "\ufeffCANARY-é\n");
  const binary = new Secret("app/key", "v1", Buffer.from("CANARY-\xff", "latin1"));
  assert.equal(binary.revealBytes().at(-1), 0xff);
  assert.throws(() => binary.reveal(), NotTextError);
});

test("a field is a string's text, or the JSON of anything else as it stands", () => {
  const text = String.raw`{ "a" : "x\"}\u0041", "n": 1.10, "big":12345678901234567890,"o": {"n":[2, "],}"]} ,"\u0065": null, "n2":-0 }`;
  const secret = new Secret("app/db", "v1", text);
  const wanted = { a: 'x"}A', n: "1.10", big: "12345678901234567890", o: '{"n":[2, "],}"]}', e: "null", n2: "-0" };
  for (const [name, value] of Object.entries(wanted)) assert.equal(secret.field(name).reveal(), value, name);
  assert.equal(new Secret("a", "1", '{"x":1,"x":2}').field("x").reveal(), "2");
  assert.deepEqual(secret.field("a").version, "v1");
  for (const name of ["N", "", "toString", "__proto__", "length"]) {
    assert.throws(() => secret.field(name), NoFieldError, name);
  }
  for (const value of ["CANARY", "[1]", "null", '"x"', "", Buffer.from([0xff])]) {
    assert.throws(() => new Secret("a", "1", value).field("0"), NoFieldError);
  }
});

test("secrets of different versions are not deeply equal", () => {
  assert.notDeepEqual(new Secret("a", "1", "CANARY-1"), new Secret("a", "2", "CANARY-2"));
});
