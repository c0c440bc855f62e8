// How an ES module of a TypeScript project uses the package: only compiled and run, by package.test.mjs.

import keyhatch, { Client, DeniedError, KeyhatchError, Secret, get, watch } from "keyhatch";
import type { Change, ErrorKind, Whoami } from "keyhatch";

export async function used(client: Client): Promise<string> {
  const secret: Secret = await keyhatch.get("app/key", { field: "password", version: "previous", cache: true, timeout: 5 });
  const env: { KEY: string } = await client.env({ KEY: "app/key" });
  const stop: () => void = await client.onRotate("app/key", (next) => next.reveal(), { ref: true, onError: console.error });
  for await (const change of watch(["a"], { signal: AbortSignal.timeout(5) })) {
    const { kind, version }: Change = change;
    if (kind === "removed" && version === null) stop();
  }
  const response: Response = await keyhatch.fetch("/v1/whoami", { method: "GET" });
  const { bot }: Whoami = (await response.json()) as Whoami;
  const bytes: Uint8Array = (await get("a")).revealBytes();
  // @ts-expect-error: a secret is no string
  const text: string = secret;
  return [env.KEY, bot, bytes, text].join();
}

export function kind(error: unknown): ErrorKind | undefined {
  if (error instanceof DeniedError && error.requestId !== null && error.code !== null) return error.kind;
  return error instanceof KeyhatchError ? error.kind : undefined;
}

if (keyhatch.Client !== Client || !(new Client() instanceof Client)) throw new Error("two modules");
