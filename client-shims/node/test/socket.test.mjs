// Who is asked: which socket, and whom it must belong to.

import assert from "node:assert/strict";
import fs from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { Client, RefusedError, UnreachableError } from "../dist/index.mjs";
import { find, trusted } from "../dist/socket.js";
import { Fake, value } from "./fake.mjs";

const [OWN, AGENT, MALLORY, OVERFLOW] = [1000, 990, 1001, 65534];
const of = (owner, shared) => ({ owner, shared });

test("root, oneself and the folder's owner are trusted", () => {
  assert.ok(trusted(0, OWN, of(MALLORY, true), false));
  assert.ok(trusted(OWN, OWN, of(MALLORY, true), true));
  assert.ok(trusted(AGENT, OWN, of(AGENT, false), false));
  assert.ok(!trusted(MALLORY, OWN, of(AGENT, false), false));
  assert.ok(!trusted(MALLORY, OWN, of(0, true), false));
  assert.ok(!trusted(MALLORY, 0, of(0, true), false));
});

test("a guessed folder that someone else made first proves nothing", () => {
  assert.ok(!trusted(MALLORY, OWN, of(MALLORY, false), true));
  assert.ok(!trusted(OVERFLOW, OWN, of(OVERFLOW, false), true));
});

test("the overflow uid counts only where no one else can listen", () => {
  assert.ok(trusted(OVERFLOW, OWN, of(OVERFLOW, false), false));
  assert.ok(!trusted(OVERFLOW, OWN, of(OVERFLOW, true), false));
  assert.ok(!trusted(OVERFLOW, OVERFLOW, of(0, true), false));
  assert.ok(trusted(OVERFLOW, OVERFLOW, of(OVERFLOW, false), true));
});

test("the socket is the one named, else $KEYHATCH_SOCKET, else where agents listen", (t) => {
  const before = { ...process.env };
  t.after(() => Object.assign(process.env, { KEYHATCH_SOCKET: "" }, before));
  process.env.KEYHATCH_SOCKET = "/e/keyhatch.sock";
  assert.deepEqual(find("/n/keyhatch.sock"), { path: "/n/keyhatch.sock", guessed: false });
  assert.deepEqual(find(undefined), { path: "/e/keyhatch.sock", guessed: false });
  process.env.KEYHATCH_SOCKET = "";
  t.mock.method(fs, "existsSync", () => true);
  assert.deepEqual(find(undefined), { path: "/run/keyhatch/keyhatch.sock", guessed: false });
  fs.existsSync.mock.mockImplementation(() => false);
  process.env.XDG_RUNTIME_DIR = "/run/user/7";
  assert.deepEqual(find(undefined), { path: "/run/user/7/keyhatch/keyhatch.sock", guessed: true });
  process.env.XDG_RUNTIME_DIR = "relative";
  assert.deepEqual(find(undefined), { path: `/tmp/keyhatch-${process.geteuid()}/keyhatch.sock`, guessed: true });
});

const skip = process.geteuid() !== 0 && "not root: no socket of another user";

test("nothing is sent to a socket of another user", { skip }, async (t) => {
  const fake = await Fake.started((connection) => connection.write(value("a", "CANARY-1")));
  t.after(() => fake.end());
  const client = new Client({ socket: fake.socket });
  fs.chmodSync(fake.folder, 0o755);
  fs.chownSync(fake.socket, MALLORY, MALLORY);
  await assert.rejects(client.get("a"), (error) => error instanceof RefusedError && /uid 1001/.test(error.message));
  assert.equal(fake.connections, 0);
  fs.chownSync(fake.folder, MALLORY, MALLORY);
  assert.equal((await client.get("a")).reveal(), "CANARY-1");
  client.close();
});

test("what is connected to is what was looked at, whatever the path leads to meanwhile", async (t) => {
  const fake = await Fake.started((connection) => connection.write(value("a", "CANARY-agent")));
  const other = await Fake.started((connection) => connection.write(value("a", "CANARY-other")));
  t.after(() => Promise.all([fake.end(), other.end()]));
  const { fstatSync } = fs;
  const looked = t.mock.method(fs, "fstatSync", (file) => {
    // The second look is at the socket itself.
    if (looked.mock.callCount() === 1) fs.renameSync(other.socket, fake.socket);
    return fstatSync(file);
  });
  const client = new Client({ socket: fake.socket });
  assert.equal((await client.get("a")).reveal(), "CANARY-agent");
  assert.equal(other.connections, 0);
  assert.ok(!fs.existsSync(other.socket));
  client.close();
});

test("no descriptor is left over, however a connection goes", async (t) => {
  const open = () => fs.readdirSync("/proc/self/fd").length;
  const fake = await Fake.started((connection) => connection.end(value("a", "CANARY-1")));
  t.after(() => fake.end());
  const client = new Client({ socket: fake.socket });
  const missing = new Client({ socket: join(fake.folder, "none.sock"), timeout: 50 });
  const round = async () => {
    await client.get("a");
    await assert.rejects(missing.get("a"), UnreachableError);
  };
  await round();
  const before = open();
  for (let at = 0; at < 5; at += 1) await round();
  client.close();
  await new Promise((resolve) => setImmediate(resolve));
  assert.ok(open() <= before);
});
