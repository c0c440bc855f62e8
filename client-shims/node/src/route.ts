// A route as a `fetch`: what is sent goes to its upstream, with a secret that this process never sees.

import { problem } from "./problem";

const ORIGIN = "http://keyhatch";

/** On each answer of an upstream, and on none of the agent's own. */
const MARK = "keyhatch-route";

const NAME = /^(?!\.{1,2}$)[A-Za-z0-9._@+-]+$/;

/** One route of an agent. */
export interface Route {
  readonly name: string;
  /**
   * The global `fetch`, to the route's upstream: of a URL, the path and the query count. What the upstream answers is
   * an answer, whatever its status; what the agent itself refuses is thrown.
   */
  readonly fetch: (input: string | URL | Request, init?: RequestInit) => Promise<Response>;
}

/** The route of that name, over `send` to the agent. */
export function route(name: string, send: typeof globalThis.fetch): Route {
  if (!NAME.test(name)) throw new TypeError(`no route is named ${JSON.stringify(name)}`);
  return {
    name,
    async fetch(input, init) {
      const url = new URL(input instanceof Request ? input.url : input, ORIGIN);
      const target = `${ORIGIN}/v1/use/${name}${url.pathname}${url.search}`;
      const response = await send(input instanceof Request ? new Request(target, input as RequestInit) : target, init);
      if (response.headers.has(MARK)) return response;
      const after = response.headers.get("retry-after") ?? undefined;
      throw problem(response.status, after, Buffer.from(await response.arrayBuffer()));
    },
  };
}
