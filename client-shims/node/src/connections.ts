// Connections to one agent, and one request on one of them.
//
// They are Node's own HTTP agent over sockets that were checked first. A child process never has one: Node starts
// children by exec, and a worker thread has modules, and so connections, of its own.

import * as http from "node:http";
import type { Duplex } from "node:stream";

import { KeyhatchError, ProtocolError, UnreachableError } from "./errors";
import { onAbort } from "./signals";
import { connect, find } from "./socket";

/** The most bytes of a status line and its headers. */
const MAX_HEAD = 8 * 1024;

/** What an agent that restarts looks like from here, and what that means. */
const RESTART: Record<string, string> = {
  ENOENT: "there is no such socket",
  ECONNREFUSED: "nobody listens there",
  EAGAIN: "too many wait to be accepted there",
  ECONNRESET: "the connection ended before the answer did",
  EPIPE: "the connection ended before the answer did",
};

/** These come before a byte of the request was sent. */
const UNSENT = new Set(["ENOENT", "ECONNREFUSED", "EAGAIN"]);

/** One request. */
export interface Question {
  method: string;
  target: string;
  headers: Record<string, string>;
  body?: string | Uint8Array | AsyncIterable<Uint8Array> | undefined;
}

/** The agent may be restarting: the request can be asked again. */
export class Interrupted {
  constructor(
    readonly error: KeyhatchError,
    /** A connection that was kept had died: a new one may well do. */
    readonly kept: boolean,
    /** Nothing was sent. */
    readonly unsent: boolean,
  ) {}
}

/** Connections that are made as they are needed, and kept for the next request where that is asked for. */
export class Connections extends http.Agent {
  readonly #socket: string | undefined;

  constructor(socket: string | undefined, options: http.AgentOptions) {
    super(options);
    this.#socket = socket;
  }

  override createConnection(
    _options: unknown,
    made?: (error: Error | null, stream: Duplex) => void,
  ): Duplex | null | undefined {
    try {
      return connect(find(this.#socket));
    } catch (error) {
      // Thrown from here it would end the process, where a request has waited for a free connection.
      made?.(error as Error, undefined as unknown as Duplex);
      return undefined;
    }
  }

  /** Where the agent is asked. */
  path(): string {
    return find(this.#socket).path;
  }

  /** Sends `question`; gives the answer once its head is there. */
  send(question: Question, signal: AbortSignal | undefined, ref = true): Promise<http.IncomingMessage> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const { method, target, headers, body } = question;
      const request = http.request({
        agent: this,
        method,
        path: target,
        headers: { host: "keyhatch", ...headers },
        maxHeaderSize: MAX_HEAD,
      });
      const letGo = onAbort(signal, () => {
        reject(signal?.reason);
        request.destroy();
      });
      request.once("close", letGo);
      request.once("response", resolve);
      request.on("error", (error) => reject(this.failure(error, request.reusedSocket)));
      if (!ref) request.once("socket", (socket) => socket.unref());
      finish(request, body, reject);
    });
  }

  /** What an error of Node's means. It is not passed on: it may carry the bytes that were read. */
  failure(error: unknown, kept = false): unknown {
    if (error instanceof KeyhatchError) return error;
    const { code } = error as NodeJS.ErrnoException;
    if (code === undefined) return error;
    const meaning = RESTART[code];
    if (meaning !== undefined) {
      const unreachable = new UnreachableError(`cannot reach the agent at ${this.path()}: ${meaning} (${code})`);
      return new Interrupted(unreachable, kept, UNSENT.has(code));
    }
    if (code.startsWith("HPE_")) return new ProtocolError(`it is not HTTP/1.1 (${code})`);
    return new UnreachableError(`cannot reach the agent at ${this.path()}: ${code}`);
  }
}

function finish(request: http.ClientRequest, body: Question["body"], reject: (error: unknown) => void): void {
  if (body === undefined || typeof body === "string" || body instanceof Uint8Array) {
    request.end(body);
    return;
  }
  const pump = async () => {
    for await (const piece of body) {
      if (request.destroyed) return;
      if (!request.write(piece)) await new Promise((resolve) => request.once("drain", resolve).once("close", resolve));
    }
    request.end();
  };
  pump().catch((error: unknown) => {
    reject(error);
    request.destroy();
  });
}
