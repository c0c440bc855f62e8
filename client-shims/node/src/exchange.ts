// A request with its whole answer, within a time, over a restart of the agent.

import type { IncomingMessage } from "node:http";

import type { Connections, Question } from "./connections";
import { Interrupted } from "./connections";
import { ProtocolError, TimedOutError } from "./errors";
import { sleep } from "./pause";
import { problem } from "./problem";
import { onAbort } from "./signals";

/** How long an agent may be away before that is an error. */
const RESTART_TIME = 5_000;
const FIRST_PAUSE = 5;
const LONGEST_PAUSE = 250;

/** An answer, all of it. */
export interface Answer {
  status: number;
  headers: IncomingMessage["headers"];
  body: Buffer;
}

/** The time that a call has, and the caller's signal that may end it before. */
export class Span {
  readonly deadline: number;
  readonly #stop = new AbortController();
  readonly #timer: NodeJS.Timeout;
  readonly #letGo: () => void;

  constructor(
    connections: Connections,
    timeout: number,
    signal: AbortSignal | undefined,
    /** Whether waiting for the answer keeps the process alive. */
    readonly ref = true,
  ) {
    this.deadline = performance.now() + timeout;
    this.#timer = setTimeout(() => {
      const message = `the agent at ${connections.path()} did not answer within ${timeout} ms`;
      this.#stop.abort(new TimedOutError(message));
    }, timeout);
    if (!ref) this.#timer.unref();
    this.#letGo = onAbort(signal, () => this.#stop.abort(signal?.reason));
  }

  /** Aborted, with the error to throw, when the call must end. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  /** The call is over. */
  close(): void {
    clearTimeout(this.#timer);
    this.#letGo();
  }
}

/** Asks a question that may be asked twice. `limit` is the largest body that its answer may have. */
export async function ask(
  connections: Connections,
  question: Question,
  limit: number,
  span: Span,
): Promise<Answer> {
  return throughRestart(span, async () => {
    const response = await connections.send(question, span.signal);
    const answer = await whole(connections, response, limit, span.signal);
    const { status, headers, body } = answer;
    // An agent that is going says so, and ends the connection.
    if (status === 503 && headers.connection?.toLowerCase() === "close") {
      throw new Interrupted(problem(status, headers["retry-after"], body), false, false);
    }
    return answer;
  });
}

/** Tries again, with growing pauses, what an agent that restarts has interrupted. */
export async function throughRestart<T>(
  span: { signal: AbortSignal | undefined; deadline: number; ref?: boolean },
  attempt: () => Promise<T>,
): Promise<T> {
  let last = span.deadline;
  let first = true;
  for (let pause = FIRST_PAUSE; ; pause = Math.min(pause * 2, LONGEST_PAUSE)) {
    try {
      return await attempt();
    } catch (error) {
      if (!(error instanceof Interrupted)) throw error;
      const now = performance.now();
      if (first) last = Math.min(last, now + RESTART_TIME);
      first = false;
      if (now + pause > last) throw error.error;
      if (!error.kept) await sleep(pause, span.signal, span.ref).catch((reason: unknown) => {
        // The time ran out between two tries: what stood in the way says more.
        throw reason instanceof TimedOutError ? error.error : reason;
      });
    }
  }
}

/** Reads the body. `limit` is the largest one accepted. */
export function whole(
  connections: Connections,
  response: IncomingMessage,
  limit: number,
  signal: AbortSignal,
): Promise<Answer> {
  return new Promise((resolve, reject) => {
    const pieces: Buffer[] = [];
    let length = 0;
    response.on("data", (piece: Buffer) => {
      pieces.push(piece);
      length += piece.length;
      if (length > limit) response.destroy(new ProtocolError("its body is too large"));
    });
    response.on("error", (error) => reject(signal.aborted ? signal.reason : connections.failure(error)));
    response.on("end", () => {
      const body = Buffer.concat(pieces);
      for (const piece of pieces) piece.fill(0);
      resolve({ status: response.statusCode ?? 0, headers: response.headers, body });
    });
  });
}

/** The body of a 200; else the error that the answer tells of. */
export function good({ status, headers, body }: Answer): Buffer {
  if (status === 200) return body;
  throw problem(status, headers["retry-after"], body);
}
