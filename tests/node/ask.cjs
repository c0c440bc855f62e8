// Clients from npm, unmodified, as a bot has them: what they need is in the environment. One JSON request a line on
// standard input, one JSON answer a line. For tests only.
"use strict";

const { createInterface } = require("node:readline");
const aws = require("@aws-sdk/client-secrets-manager");
const vault = require("node-vault");
const { OpenAI } = require("openai");

const verbs = {
  /** One operation of AWS's SDK. */
  async aws({ call, input }) {
    const client = new aws.SecretsManagerClient({ maxAttempts: 1 });
    const { $metadata, ...output } = await client.send(new aws[`${call}Command`](input));
    return { status: $metadata.httpStatusCode, output };
  },
  /** All pages of a list, by AWS's own paginator. */
  async aws_pages({ size, input }) {
    const client = new aws.SecretsManagerClient({ maxAttempts: 1 });
    const pages = [];
    for await (const page of aws.paginateListSecrets({ client, pageSize: size }, input)) pages.push(page.SecretList);
    return { pages };
  },
  /** One call of node-vault. */
  async vault({ call, path }) {
    return { output: await vault()[call](path) };
  },
  /** What a model says; the key is read from the agent for each request. */
  async openai({ name }) {
    const keyhatch = require(process.env.KEYHATCH_LIBRARY);
    const client = new OpenAI({ apiKey: async () => (await keyhatch.get(name)).reveal(), maxRetries: 0 });
    const answer = await client.chat.completions.create({ model: "m", messages: [{ role: "user", content: "hi" }] });
    return { said: answer.choices[0].message.content };
  },
  quit() {
    process.exit(0);
  },
};

/** An error as each client throws it: its own kind, and what it took from the answer. */
function failure(error) {
  const cause = error.cause ?? {};
  return {
    error: error.constructor.name,
    name: error.name,
    kinds: Object.keys(aws).filter((kind) => kind.endsWith("Exception") && error instanceof aws[kind]),
    status: error.$metadata?.httpStatusCode ?? error.response?.statusCode ?? error.status,
    request_id: error.$metadata?.requestId,
    body: error.response?.body,
    message: error.message,
    cause: cause.kind,
  };
}

/** JSON with what it has no type for marked as such. */
function shown(key, value) {
  if (this[key] instanceof Date) return { date: this[key].getTime() / 1000 };
  if (value instanceof Uint8Array) return { bytes: Buffer.from(value).toString("base64") };
  return value;
}

(async () => {
  for await (const line of createInterface({ input: process.stdin })) {
    const request = JSON.parse(line);
    const answer = await verbs[request.op](request).then((done) => ({ ok: true, ...done }), failure);
    process.stdout.write(`${JSON.stringify(answer, shown)}\n`);
  }
})();
