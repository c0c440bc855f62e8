// What the answers of the native API mean.

import type { Answer } from "./exchange";
import { good } from "./exchange";
import { ProtocolError } from "./errors";
import { parse } from "./json";
import { Secret } from "./secret";

/** A name that the agent lists. */
export interface Listed {
  name: string;
  /** Its current version. */
  version: string;
}

/** A name of a batch that was not given, with its problem code. */
export interface BatchError {
  name: string;
  code: string;
}

/** Many secrets at once: those that were given, and why others were not. */
export interface Batch {
  secrets: Secret[];
  errors: BatchError[];
}

/** Who the agent thinks this process is, and what it may have. */
export interface Whoami {
  pid: number;
  uid: number | null;
  gid: number | null;
  groups: number[];
  exe: string | null;
  unit: string | null;
  user_unit: string | null;
  bot: string | null;
  roles: string[];
  /** What its roles grant, as written in the configuration. */
  grants: unknown[];
  /** The routes that it may use. An older agent does not say. */
  routes?: { name: string; upstream: string }[];
}

/** How the agent is. */
export interface Health {
  status: "ready" | "unavailable";
  /** Why it is not ready. */
  reasons: string[];
  /** Promises that its host does not let it keep. */
  missing: string[];
}

type Document = Record<string, unknown>;

/** The answer to a request for a value. */
export function value(name: string, answer: Answer): Secret {
  return secret(name, document(good(answer)));
}

/** The answer to a long poll: undefined where nothing has changed. */
export function change(name: string, answer: Answer): Secret | undefined {
  return answer.status === 304 ? undefined : value(name, answer);
}

/** One page of names, and the name to list on from. */
export function page(after: string | undefined, answer: Answer): { secrets: Listed[]; next: string | undefined } {
  const { secrets, next } = document(good(answer));
  const listed = items(secrets).map(({ name, version }) => ({ name: text(name), version: text(version) }));
  if (next === null || next === undefined) return { secrets: listed, next: undefined };
  // A server that names the same one again would be asked for ever.
  if (after !== undefined && text(next) <= after) throw new ProtocolError("its list does not come to an end");
  return { secrets: listed, next: text(next) };
}

export function batch(answer: Answer): Batch {
  const { secrets, errors } = document(good(answer));
  return {
    secrets: items(secrets).map((item) => secret(text(item.name), item)),
    errors: items(errors).map(({ name, code }) => ({ name: text(name), code: text(code) })),
  };
}

export function whoami(answer: Answer): Whoami {
  return document(good(answer)) as unknown as Whoami;
}

/** Health is told with 503 as well. */
export function health(answer: Answer): Health {
  const told = answer.status === 503 ? parse(answer.body) : undefined;
  if (typeof told?.status === "string") return told as unknown as Health;
  return document(good(answer)) as unknown as Health;
}

function secret(name: string, { version, value, value_base64, stale }: Document): Secret {
  if ((value === undefined) === (value_base64 === undefined)) throw wrongShape();
  const plain = value === undefined ? decoded(text(value_base64)) : text(value);
  return new Secret(name, text(version), plain, stale === true);
}

function document(body: Buffer): Document {
  const document = parse(body);
  body.fill(0);
  if (document === undefined) throw wrongShape();
  return document;
}

function decoded(base64: string): Uint8Array {
  const bytes = Buffer.from(base64, "base64");
  if (bytes.toString("base64") !== base64) throw wrongShape();
  return bytes;
}

function items(value: unknown): Document[] {
  if (!Array.isArray(value) || value.some((item) => typeof item !== "object" || item === null)) throw wrongShape();
  return value as Document[];
}

function text(value: unknown): string {
  if (typeof value !== "string") throw wrongShape();
  return value;
}

function wrongShape(): ProtocolError {
  return new ProtocolError("its JSON has another shape");
}
