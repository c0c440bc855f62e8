// A secret, printed in every way that Node has: none may show its value.

import assert from "node:assert";
import { Console } from "node:console";
import inspector from "node:inspector";
import { Writable } from "node:stream";
import util from "node:util";
import v8 from "node:v8";

/** What each way shows. */
export async function printed(secret) {
  const nested = { deep: { deeper: [{ deepest: new Map([["key", secret]]) }] } };
  const ways = [
    String(secret), `${secret}`, "" + secret, secret.toString(), [secret, secret].join(), secret.toLocaleString(),
    JSON.stringify(secret), JSON.stringify(nested.deep), JSON.stringify({ ...secret }), JSON.stringify(Object.assign({}, secret)),
    JSON.stringify(Object.entries(secret)), JSON.stringify(Object.keys(secret)), JSON.stringify(Object.values(secret)),
    JSON.stringify(Object.getOwnPropertyDescriptors(secret)), JSON.stringify(Object.getOwnPropertySymbols(secret).map(String)),
    JSON.stringify(Reflect.ownKeys(secret).map((key) => String(secret[key]))), enumerated(secret), prototypes(secret),
    util.inspect(secret), util.inspect(nested, { depth: Infinity }), util.inspect(secret, { customInspect: false }),
    util.inspect(nested, { depth: Infinity, showHidden: true, getters: true, showProxy: true, customInspect: false }),
    util.format("%s %o %O %j %d %i %f", ...Array(7).fill(secret)), util.format(secret, secret), util.inspect(new Proxy(secret, {})),
    util.inspect(new Error("no", { cause: secret })), util.inspect(new AggregateError([secret], "no")), util.inspect(Promise.resolve(secret)),
    ...logged((out) => out.log(secret)), ...logged((out) => out.log("%s %o", secret, nested)), ...logged((out) => out.table([secret])),
    ...logged((out) => out.dir(nested, { depth: null, showHidden: true })), ...logged((out) => out.error(new Error(secret))),
    ...logged((out) => out.group(secret)), ...logged((out) => out.assert(false, secret)), ...logged((out) => out.trace(secret)),
    refused(() => util.inspect(structuredClone(secret), { showHidden: true })), v8.serialize(secret).toString("latin1"),
    refused(() => assert.strictEqual(secret, "another")), refused(() => assert.deepStrictEqual(nested, { deep: 1 })),
    refused(() => assert.fail(secret)), refused(() => secret.noSuchMethod()), refused(() => JSON.parse(secret)),
    refused(() => secret.field("no such field")), refused(() => { secret.name = "other"; }), refused(() => new URL(secret)),
    String(new URLSearchParams({ key: secret })), Buffer.from(secret.toString()).toString("latin1"), encodeURIComponent(secret),
    await debugged(secret),
  ];
  return ways;
}

/** What `for in` finds. */
function enumerated(secret) {
  const found = [];
  for (const key in secret) found.push(`${key}=${secret[key]}`);
  return found.join();
}

/** What its prototypes hold, getters asked. */
function prototypes(secret) {
  const found = [];
  for (let at = secret; at !== null; at = Object.getPrototypeOf(at)) {
    for (const key of Reflect.ownKeys(at)) found.push(`${String(key)}=${refused(() => String(Reflect.get(at, key, secret)))}`);
  }
  return found.join();
}

function refused(call) {
  try {
    return String(call());
  } catch (error) {
    return `${error} ${error.stack} ${util.inspect(error, { showHidden: true, depth: Infinity })}`;
  }
}

/** What a console writes. */
function logged(write) {
  let text = "";
  const stream = new Writable({ write(bytes, _, done) { text += bytes; done(); } });
  write(new Console(stream, stream));
  return [text];
}

/** What a debugger is told: of an object logged, and of its properties, private ones too. */
async function debugged(secret) {
  const session = new inspector.Session();
  session.connect();
  const post = util.promisify(session.post.bind(session));
  const told = [];
  session.on("Runtime.consoleAPICalled", ({ params }) => told.push(params));
  await post("Runtime.enable");
  globalThis.printedSecret = secret;
  const options = { expression: "printedSecret", generatePreview: true };
  const { result } = await post("Runtime.evaluate", options);
  told.push(result, await post("Runtime.getProperties", { objectId: result.objectId, generatePreview: true }));
  told.push(await post("Runtime.evaluate", { ...options, returnByValue: true }));
  inspector.console.log(secret, { secret });
  delete globalThis.printedSecret;
  session.disconnect();
  return JSON.stringify(told);
}
