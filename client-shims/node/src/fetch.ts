// `fetch` to the agent's socket, with the shape of the global one.

import type { IncomingMessage } from "node:http";
import { ReadableStream } from "node:stream/web";

import type { Connections, Question } from "./connections";
import { Interrupted } from "./connections";
import { throughRestart } from "./exchange";
import { onAbort } from "./signals";

const ORIGIN = "http://keyhatch";

/** What the connection itself decides (RFC 9110, section 7.6.1). */
const OF_THE_CONNECTION = ["connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade"];
const WITHOUT_BODY = new Set([204, 205, 304]);

/** Where requests go that may be repeated, and those that may not. */
export interface Lines {
  kept: Connections;
  /** A connection for one request: none that was kept can turn out dead under it. */
  single: Connections;
}

/** Sends a request to a path of the agent, or to `http://keyhatch/...`. */
export async function fetch(lines: Lines, input: string | URL | Request, init?: RequestInit): Promise<Response> {
  const url = new URL(input instanceof Request ? input.url : input, ORIGIN);
  if (url.origin !== ORIGIN) throw new TypeError(`this fetch is for a path of the agent or ${ORIGIN}/..., no other host`);
  const request = new Request(input instanceof Request ? input : url, init);
  const signal = init?.signal ?? (input instanceof Request ? input.signal : undefined);
  const question = await asked(url, request, init);
  const repeatable = (request.method === "GET" || request.method === "HEAD") && question.body === undefined;
  const line = repeatable ? lines.kept : lines.single;
  const response = await throughRestart({ signal, deadline: Infinity }, async () => {
    try {
      return await line.send(question, signal);
    } catch (error) {
      if (error instanceof Interrupted && !repeatable && !error.unsent) throw error.error;
      throw error;
    }
  });
  return answered(line, url, request.method, response, signal);
}

async function asked(url: URL, request: Request, init: RequestInit | undefined): Promise<Question> {
  const headers = Object.fromEntries(request.headers);
  for (const name of OF_THE_CONNECTION) delete headers[name];
  const question: Question = { method: request.method, target: url.pathname + url.search, headers };
  if (request.body === null) return question;
  // A stream must be announced so; anything else has a length.
  question.body = init?.duplex === "half" ? request.body : new Uint8Array(await request.arrayBuffer());
  return question;
}

function answered(
  line: Connections,
  url: URL,
  method: string,
  response: IncomingMessage,
  signal: AbortSignal | undefined,
): Response {
  const headers = new Headers();
  for (let at = 0; at + 1 < response.rawHeaders.length; at += 2) {
    headers.append(response.rawHeaders[at]!, response.rawHeaders[at + 1]!);
  }
  const status = response.statusCode ?? 0;
  const empty = method === "HEAD" || WITHOUT_BODY.has(status);
  if (empty) response.resume();
  const body = empty ? null : streamed(line, response, signal);
  const answer = new Response(body, { status, statusText: response.statusMessage ?? "", headers });
  return Object.defineProperty(answer, "url", { value: url.href });
}

function streamed(line: Connections, response: IncomingMessage, signal: AbortSignal | undefined): ReadableStream {
  const pieces = response[Symbol.asyncIterator]() as AsyncIterator<Buffer>;
  response.once("close", onAbort(signal, () => response.destroy()));
  return new ReadableStream({
    async pull(controller) {
      try {
        const { value, done } = await pieces.next();
        if (done) controller.close();
        else controller.enqueue(value);
      } catch (error) {
        if (signal?.aborted) throw signal.reason;
        const failure = line.failure(error);
        throw failure instanceof Interrupted ? failure.error : failure;
      }
    },
    cancel() {
      response.on("error", () => {}).destroy();
    },
  });
}
