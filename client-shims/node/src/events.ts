// Server-sent events (WHATWG HTML, section 9.2.6). They hold names and versions, never values.

import { StringDecoder } from "node:string_decoder";

import { ProtocolError } from "./errors";

/** The id of a watch carries a version for each of its names, and fits a header. */
const MAX_LINE = 16 * 1024;

/** One event as it came. */
export interface RawEvent {
  id: string | undefined;
  kind: string;
  data: string;
}

/** Takes events out of a body that arrives in pieces. */
export class EventParser {
  readonly #decoder = new StringDecoder("utf8");
  #text = "";
  #event: RawEvent = blank();

  /** The events that are complete with `bytes`. */
  push(bytes: Buffer): RawEvent[] {
    const events: RawEvent[] = [];
    const lines = (this.#text + this.#decoder.write(bytes)).split(/\r\n|\n|\r(?!$)/);
    this.#text = lines.pop() ?? "";
    for (const line of [...lines, this.#text]) {
      if (line.length > MAX_LINE) throw new ProtocolError("a line of its event stream is too long");
    }
    for (const line of lines) {
      if (line !== "") this.#take(line);
      else if (this.#event.data !== "") events.push(this.#event);
      if (line === "") this.#event = blank();
    }
    return events;
  }

  #take(line: string): void {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "event") this.#event.kind = value;
    // It goes back in a header: nothing but visible characters.
    if (name === "id" && /^[\x21-\x7e]*$/.test(value)) this.#event.id = value;
    if (name !== "data") return;
    this.#event.data += this.#event.data === "" ? value : `\n${value}`;
    if (this.#event.data.length > MAX_LINE) throw new ProtocolError("an event of its stream is too long");
  }
}

function blank(): RawEvent {
  return { id: undefined, kind: "", data: "" };
}
