// One event stream about some secrets, on a connection of its own, until that ends.

import type { IncomingMessage } from "node:http";

import type { Connections } from "./connections";
import { Interrupted } from "./connections";
import { ProtocolError } from "./errors";
import { EventParser } from "./events";
import type { RawEvent } from "./events";
import { Span, good, throughRestart, whole } from "./exchange";
import { parse } from "./json";

const MAX_REFUSAL = 64 * 1024;

/** Something happened to a watched secret. */
export interface Change {
  /** How it stands as the watch begins; a new version is served; it is gone. */
  kind: "current" | "rotated" | "removed";
  /** To which secret. */
  name: string;
  /** The version that is served now; null where there is none. */
  version: string | null;
}

/** How a stream is opened. */
export interface Opening {
  connections: Connections;
  names: readonly string[];
  timeout: number;
  signal: AbortSignal;
  /** Whether it keeps the process alive. */
  ref: boolean;
}

/** An open stream. */
export class ChangeStream {
  /** The id of the last event, from which another stream can go on. */
  lastId: string | undefined;
  readonly #connections: Connections;
  readonly #response: IncomingMessage;
  readonly #pieces: AsyncIterator<Buffer>;
  readonly #parser = new EventParser();
  #ready: RawEvent[] = [];

  private constructor(connections: Connections, response: IncomingMessage, lastId: string | undefined) {
    this.#connections = connections;
    this.#response = response;
    this.#pieces = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
    this.lastId = lastId;
  }

  static async open(opening: Opening, lastId?: string): Promise<ChangeStream> {
    const { connections, names, timeout, signal, ref } = opening;
    const headers: Record<string, string> = { accept: "text/event-stream" };
    if (lastId) headers["last-event-id"] = lastId;
    const target = `/v1/watch?${names.map((name) => `name=${encodeURIComponent(name)}`).join("&")}`;
    const span = new Span(connections, timeout, signal, ref);
    try {
      const response = await throughRestart(span, async () => {
        const answer = await connections.send({ method: "GET", target, headers }, span.signal, ref);
        if (answer.statusCode !== 200) good(await whole(connections, answer, MAX_REFUSAL, span.signal));
        return answer;
      });
      if (!response.headers["content-type"]?.startsWith("text/event-stream")) {
        response.destroy();
        throw new ProtocolError("a watch was not answered with events");
      }
      return new ChangeStream(connections, response, lastId);
    } finally {
      span.close();
    }
  }

  /** The next change; throws once the stream has ended. */
  async next(): Promise<Change> {
    for (;;) {
      for (let event = this.#ready.shift(); event !== undefined; event = this.#ready.shift()) {
        if (event.id !== undefined) this.lastId = event.id;
        const change = meaning(event);
        if (change !== undefined) return change;
      }
      this.#ready = this.#parser.push(await this.#read());
    }
  }

  async #read(): Promise<Buffer> {
    let failure: unknown = { code: "ECONNRESET" };
    try {
      const { value, done } = await this.#pieces.next();
      if (!done) return value;
    } catch (error) {
      failure = error;
    }
    const error = this.#connections.failure(failure);
    throw error instanceof Interrupted ? error.error : error;
  }

  /** From here on it does not keep the process alive. */
  unref(): void {
    this.#response.socket.unref();
  }

  close(): void {
    // What was being read ends with an error that nobody waits for any more.
    this.#response.on("error", () => {}).destroy();
  }
}

/** What an event tells; undefined for one that this client does not know. */
function meaning({ kind, data }: RawEvent): Change | undefined {
  if (kind !== "current" && kind !== "rotated" && kind !== "removed") return undefined;
  const { name, version } = parse(data) ?? {};
  if (typeof name !== "string" || (typeof version !== "string" && version !== null)) return undefined;
  return { kind, name, version };
}
