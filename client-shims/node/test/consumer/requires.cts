// How a CommonJS module of a TypeScript project uses the package: only compiled and run, by package.test.mjs.

import keyhatch = require("keyhatch");
import { Client, NotFoundError } from "keyhatch";

export async function used(client: Client): Promise<string> {
  try {
    const secret: keyhatch.Secret = await client.get("app/key");
    return secret.field("password").reveal();
  } catch (error) {
    return error instanceof NotFoundError ? error.message : "";
  }
}

if (keyhatch.Client !== Client || typeof keyhatch.get !== "function") throw new Error("two modules");
