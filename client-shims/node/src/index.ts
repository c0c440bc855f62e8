// Client of the Keyhatch secrets agent: `await keyhatch.get("openai/api-key")`, then `.reveal()` where it is used.

import { Client } from "./client";
import type { CallOptions, GetOptions } from "./client";
import type { Batch, Health, Listed, Whoami } from "./reply";
import type { RotateOptions, Rotated } from "./rotate";
import type { Route } from "./route";
import type { Secret } from "./secret";
import type { Watch } from "./watch";

export { Client } from "./client";
export type { CallOptions, ClientOptions, GetOptions } from "./client";
export * from "./errors";
export type { Batch, BatchError, Health, Listed, Whoami } from "./reply";
export type { RotateOptions, Rotated } from "./rotate";
export type { Route } from "./route";
export { Secret } from "./secret";
export type { Change } from "./stream";
export type { Watch } from "./watch";

let client: Client | undefined;

/** The client that the functions below ask, made for the first of them. */
function own(): Client {
  return (client ??= new Client());
}

/** See {@link Client.get}. */
export function get(name: string, options?: GetOptions): Promise<Secret> {
  return own().get(name, options);
}

/** See {@link Client.list}. */
export function list(prefix?: string, options?: CallOptions): Promise<Listed[]> {
  return own().list(prefix, options);
}

/** See {@link Client.batch}. */
export function batch(names: readonly string[], options?: CallOptions): Promise<Batch> {
  return own().batch(names, options);
}

/** See {@link Client.whoami}. */
export function whoami(options?: CallOptions): Promise<Whoami> {
  return own().whoami(options);
}

/** See {@link Client.health}. */
export function health(options?: CallOptions): Promise<Health> {
  return own().health(options);
}

/** See {@link Client.waitForChange}. */
export function waitForChange(
  name: string,
  version: string,
  wait: number,
  options?: CallOptions,
): Promise<Secret | undefined> {
  return own().waitForChange(name, version, wait, options);
}

/** See {@link Client.watch}. */
export function watch(names: string | readonly string[], options?: { signal?: AbortSignal }): Watch {
  return own().watch(names, options);
}

/** See {@link Client.onRotate}. */
export function onRotate(name: string, rotated: Rotated, options?: RotateOptions): Promise<() => void> {
  return own().onRotate(name, rotated, options);
}

/** See {@link Client.env}. */
export function env<Names extends Record<string, string>>(
  names: Names,
  options?: CallOptions,
): Promise<{ [Variable in keyof Names]: string }> {
  return own().env(names, options);
}

/** See {@link Client.fetch}. */
export function fetch(input: string | URL | Request, init?: RequestInit): Promise<Response> {
  return own().fetch(input, init);
}

/** See {@link Client.route}. */
export function route(name: string): Route {
  return own().route(name);
}
