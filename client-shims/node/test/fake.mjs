// An agent that answers what the test says, and remembers what it was asked.

import { once } from "node:events";
import { mkdtempSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export class Fake {
  folder = mkdtempSync(join(tmpdir(), "keyhatch-node-"));
  socket = join(this.folder, "keyhatch.sock");
  /** The heads of the requests, in order. */
  seen = [];
  connections = 0;
  #open = new Set();
  #server;

  /** `answer` writes to the connection what it likes, told the request and its number. */
  static async started(answer) {
    const fake = new Fake();
    await fake.listen(answer);
    return fake;
  }

  async listen(answer) {
    this.#server = net.createServer((connection) => this.#serve(connection, answer)).listen(this.socket);
    await once(this.#server, "listening");
  }

  #serve(connection, answer) {
    this.connections += 1;
    this.#open.add(connection);
    let text = "";
    connection.on("error", () => {}).on("close", () => this.#open.delete(connection));
    connection.on("data", (bytes) => {
      // One that has ended does not answer what comes late.
      if (connection.writableEnded) return;
      text += bytes.toString("latin1");
      for (let end = text.indexOf("\r\n\r\n"); end >= 0; end = text.indexOf("\r\n\r\n")) {
        const head = text.slice(0, end);
        const length = Number(/^content-length: (\d+)/im.exec(head)?.[1] ?? 0);
        if (text.length < end + 4 + length) return;
        this.seen.push(head);
        const body = text.slice(end + 4, end + 4 + length);
        text = text.slice(end + 4 + length);
        answer(connection, head, this.seen.length, body);
      }
    });
  }

  /** Ends every connection, and takes no new one. */
  async stop() {
    for (const connection of this.#open) connection.destroy();
    this.#server.close();
    await once(this.#server, "close");
  }

  async end() {
    if (this.#server.listening) await this.stop();
    rmSync(this.folder, { recursive: true });
  }
}

/** An answer with a length. */
export function reply(status, body, headers = "") {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return `HTTP/1.1 ${status} x\r\n${headers}Content-Length: ${Buffer.byteLength(text)}\r\n\r\n${text}`;
}

export function value(name, text, version = "1") {
  return reply(200, { name, version, value: text, updated_at: "", source: "local", stale: false });
}

/** The head of an event stream. */
export const EVENTS = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";

/** One event in a chunk of its own. */
export function event(kind, name, version, id = version) {
  const text = `id: ${id}\nevent: ${kind}\ndata: ${JSON.stringify({ name, version })}\n\n`;
  return `${text.length.toString(16)}\r\n${text}\r\n`;
}
