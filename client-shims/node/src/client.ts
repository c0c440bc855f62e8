// A client of one agent.

import { Cache } from "./cache";
import { Connections } from "./connections";
import type { Question } from "./connections";
import { NameError } from "./errors";
import { Span, ask } from "./exchange";
import type { Answer } from "./exchange";
import { fetch } from "./fetch";
import { checked, wanted } from "./name";
import type { Wanted } from "./name";
import { Poll, sleep } from "./pause";
import * as reply from "./reply";
import type { Batch, Health, Listed, Whoami } from "./reply";
import { onRotate } from "./rotate";
import type { RotateOptions, Rotated } from "./rotate";
import { route } from "./route";
import type { Route } from "./route";
import type { Secret } from "./secret";
import { onAbort } from "./signals";
import type { Opening } from "./stream";
import { Watch } from "./watch";

const DEFAULT_TIMEOUT = 10_000;
const MAX_BATCH = 100;
/** JSON escapes make at most six bytes of one of the 65,536; the rest of the document is small. */
const MAX_VALUE_BODY = 6 * 65_536 + 16 * 1024;
const MAX_PAGE = 4 * 1024 * 1024;
const MAX_SMALL = 1024 * 1024;
/** What an entity tag can hold (RFC 9110, section 8.8.3), so that no version can add a header. */
const VERSION = /^[!#-~]+$/;
/** One user may have only a part of the agent's connections. */
const MOST_AT_ONCE = 16;
const MOST_KEPT = 4;

/** Which agent, and how long to wait for it. */
export interface ClientOptions {
  /** The agent's socket, instead of `$KEYHATCH_SOCKET` or where agents usually listen. */
  socket?: string;
  /** Milliseconds that a call may take, instead of 10,000. */
  timeout?: number;
}

/** What any call takes. */
export interface CallOptions {
  /** Ends the call: it throws the signal's reason. */
  signal?: AbortSignal;
  /** Milliseconds that this call may take. */
  timeout?: number;
}

/** Which value is read, and from where. */
export interface GetOptions extends CallOptions {
  /** One field of a value that is a JSON object. */
  field?: string;
  /** `previous`, or a version's own text. */
  version?: string;
  /** Keep the value in this process, as long as a watch says that it is current. */
  cache?: boolean;
}

/** Asks one agent for secrets. It keeps connections between calls, which do not keep the process alive. */
export class Client {
  readonly #timeout: number;
  readonly #kept: Connections;
  readonly #polling: Connections;
  readonly #single: Connections;
  readonly #cache: Cache;
  readonly #stop = new AbortController();

  constructor({ socket, timeout = DEFAULT_TIMEOUT }: ClientOptions = {}) {
    this.#timeout = timeout;
    this.#kept = new Connections(socket, { keepAlive: true, maxSockets: MOST_AT_ONCE, maxFreeSockets: MOST_KEPT });
    this.#polling = new Connections(socket, { keepAlive: true, maxFreeSockets: 1 });
    this.#single = new Connections(socket, { keepAlive: false });
    this.#cache = new Cache(
      (name) => this.#opening([name], this.#stop.signal, false),
      (asked, options) => this.#read(asked, options),
    );
  }

  /** The value of `NAME`, or of one field of it: `NAME#field`. */
  async get(name: string, options: GetOptions = {}): Promise<Secret> {
    const asked = wanted(name, options.field, options.version);
    if (options.cache && asked.version === undefined) return this.#cache.get(asked, options);
    return this.#read(asked, options);
  }

  /** What this process may see below `prefix`, in byte order of the names. */
  async list(prefix = "", options: CallOptions = {}): Promise<Listed[]> {
    const listed: Listed[] = [];
    let after: string | undefined;
    do {
      const query = { prefix, ...(after === undefined ? {} : { after }) };
      const { secrets, next } = reply.page(after, await this.#ask(target("/v1/secrets", query), MAX_PAGE, options));
      listed.push(...secrets);
      after = next;
    } while (after !== undefined);
    return listed;
  }

  /** Many values at once. A name that is refused is in `errors` and does not fail the others. */
  async batch(names: readonly string[], options: CallOptions = {}): Promise<Batch> {
    const batch: Batch = { secrets: [], errors: [] };
    for (let at = 0; at < names.length; at += MAX_BATCH) {
      const body = JSON.stringify({ names: names.slice(at, at + MAX_BATCH) });
      const { secrets, errors } = reply.batch(await this.#ask("/v1/batch", MAX_BATCH * MAX_VALUE_BODY, options, body));
      batch.secrets.push(...secrets);
      batch.errors.push(...errors);
    }
    return batch;
  }

  /** Who the agent thinks this process is, and what it may have. */
  async whoami(options: CallOptions = {}): Promise<Whoami> {
    return reply.whoami(await this.#ask("/v1/whoami", MAX_SMALL, options));
  }

  /** Whether the agent is ready, and why not. */
  async health(options: CallOptions = {}): Promise<Health> {
    return reply.health(await this.#ask("/v1/health", MAX_SMALL, options));
  }

  /**
   * The value of `NAME`, or `NAME#field`, once its version is not `version`; undefined where it still is after `wait`
   * milliseconds. It goes on over a restart of the agent.
   */
  async waitForChange(
    name: string,
    version: string,
    wait: number,
    options: CallOptions = {},
  ): Promise<Secret | undefined> {
    if (!VERSION.test(version)) throw new NameError("this is not a version that an agent gives");
    const asked = wanted(name);
    const path = target(`/v1/secrets/${asked.name}`, asked.field === undefined ? {} : { field: asked.field });
    const poll = new Poll(wait);
    for (;;) {
      const secret = reply.change(asked.name, await this.#changed(path, version, poll.seconds(), options));
      const pause = poll.pause();
      if (secret !== undefined || pause === undefined) return secret;
      await sleep(pause, options.signal);
    }
  }

  /**
   * What happens to these secrets, for `for await`. It begins with how each stands, and connects again by itself
   * where the connection is lost.
   */
  watch(names: string | readonly string[], { signal }: { signal?: AbortSignal } = {}): Watch {
    const stop = new AbortController();
    return new Watch(this.#opening(typeof names === "string" ? [names] : names, stop.signal, true), stop, signal);
  }

  /**
   * Calls `rotated` with each new value of `name`. Resolves, once it is watching, to a function that ends it. It
   * does not keep the process alive unless `ref` asks for that.
   */
  async onRotate(name: string, rotated: Rotated, options: RotateOptions = {}): Promise<() => void> {
    const { signal, ref = false, onError } = options;
    const stop = new AbortController();
    const opening = this.#opening([name], stop.signal, ref);
    const end = linked(stop, [signal, this.#stop.signal]);
    try {
      await onRotate(opening, () => this.get(name), rotated, onError);
    } catch (error) {
      end();
      throw error;
    }
    return end;
  }

  /**
   * Plain values under names of your own, all or none: `env({ OPENAI_API_KEY: "openai/api-key" })` is what
   * `process.env` was. These values do print themselves.
   */
  async env<Names extends Record<string, string>>(
    names: Names,
    options: CallOptions = {},
  ): Promise<{ [Variable in keyof Names]: string }> {
    const entries = Object.entries(names).map(async ([variable, name]) => {
      return [variable, (await this.get(name, options)).reveal()] as const;
    });
    return Object.fromEntries(await Promise.all(entries)) as { [Variable in keyof Names]: string };
  }

  /**
   * The global `fetch`, to the agent: `input` is a path or `http://keyhatch/...`. It has no timeout but its signal,
   * and follows no redirect.
   */
  fetch(input: string | URL | Request, init?: RequestInit): Promise<Response> {
    return fetch({ kept: this.#kept, single: this.#single }, input, init);
  }

  /** A route, whose `fetch` calls its upstream with a secret that this process does not see. */
  route(name: string): Route {
    return route(name, (input, init) => this.fetch(input, init));
  }

  /** Closes what is kept open, ends what was begun by `onRotate` and forgets what was cached. */
  close(): void {
    this.#stop.abort();
    this.#cache.clear();
    this.#kept.destroy();
    this.#polling.destroy();
    this.#single.destroy();
  }

  async #read({ name, field, version }: Wanted, options: CallOptions): Promise<Secret> {
    const query = { ...(version === undefined ? {} : { version }), ...(field === undefined ? {} : { field }) };
    return reply.value(name, await this.#ask(target(`/v1/secrets/${name}`, query), MAX_VALUE_BODY, options));
  }

  async #ask(path: string, limit: number, options: CallOptions, body?: string): Promise<Answer> {
    const question: Question = { method: "GET", target: path, headers: { accept: "application/json" } };
    if (body !== undefined) {
      question.method = "POST";
      question.headers["content-type"] = "application/json";
      question.body = body;
    }
    return this.#send(this.#kept, question, limit, options);
  }

  /** Asks for the value once it is another one than `version`. Reads do not wait for such a connection. */
  #changed(path: string, version: string, seconds: number, options: CallOptions): Promise<Answer> {
    const headers = { accept: "application/json", "if-none-match": `"${version}"`, prefer: `wait=${seconds}` };
    const timeout = (options.timeout ?? this.#timeout) + seconds * 1000;
    const question = { method: "GET", target: path, headers };
    return this.#send(this.#polling, question, MAX_VALUE_BODY, { ...options, timeout });
  }

  async #send(connections: Connections, question: Question, limit: number, options: CallOptions): Promise<Answer> {
    const { signal, timeout = this.#timeout } = options;
    const span = new Span(connections, timeout, signal);
    try {
      return await ask(connections, question, limit, span);
    } finally {
      span.close();
    }
  }

  #opening(names: readonly string[], signal: AbortSignal, ref: boolean): Opening {
    if (names.length === 0) throw new NameError("a watch needs at least one secret name");
    return { connections: this.#single, names: names.map(checked), timeout: this.#timeout, signal, ref };
  }
}

/** Ends `stop` with the first of `signals`; gives a function that ends it and lets go of them. */
function linked(stop: AbortController, signals: (AbortSignal | undefined)[]): () => void {
  const ends = signals.map((signal) => onAbort(signal, () => stop.abort(signal?.reason)));
  return () => {
    ends.forEach((letGo) => letGo());
    stop.abort();
  };
}

function target(path: string, query: Record<string, string>): string {
  const pairs = Object.entries(query).map(([key, value]) => `${key}=${encoded(value)}`);
  return pairs.length === 0 ? path : `${path}?${pairs.join("&")}`;
}

/** Half a surrogate pair, which cannot be encoded, becomes the character for what is no character. */
function encoded(text: string): string {
  return encodeURIComponent(Buffer.from(text).toString());
}
