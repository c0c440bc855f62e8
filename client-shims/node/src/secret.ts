// A secret in the hands of a bot: it can be read, and does not print itself.

import { inspect } from "node:util";

import { NoFieldError, NotTextError } from "./errors";
import { field } from "./json";

/**
 * The values, outside the objects that they belong to: a private field would show in a debugger, and in what
 * a debugger's protocol sends of an object that is logged.
 */
const values = new WeakMap<Secret, Uint8Array>();

/**
 * The value of a secret, with its name and version.
 *
 * However it is printed, serialised, copied or compared, the value is not in it: only `reveal()` and
 * `revealBytes()` give it. Read it where it is used, and do not keep what they return.
 */
export class Secret {
  /** The secret's name. */
  readonly name: string;
  /** Which value this is: an opaque text, another one for every value of the secret. */
  readonly version: string;
  /** The agent's source is away: this is its last good value. */
  readonly stale: boolean;

  /** The agent's answers are made of these; a bot's own tests may make one as well. */
  constructor(name: string, version: string, value: string | Uint8Array, stale = false) {
    this.name = name;
    this.version = version;
    this.stale = stale;
    values.set(this, typeof value === "string" ? new TextEncoder().encode(value) : new Uint8Array(value));
    Object.freeze(this);
  }

  /** The value as text. */
  reveal(): string {
    const value = held(this);
    try {
      return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(value);
    } catch {
      throw new NotTextError(this.name);
    }
  }

  /** The value, exactly: a copy of its own, which the caller may wipe. */
  revealBytes(): Uint8Array {
    return new Uint8Array(held(this));
  }

  /** One field of a value that is a JSON object: the text of a string, the JSON of anything else. */
  field(name: string): Secret {
    const value = field(Buffer.from(held(this)).toString(), name);
    if (value === undefined) throw new NoFieldError(this.name, name);
    return new Secret(this.name, this.version, value, this.stale);
  }

  /** What is shown instead of the value. */
  toString(): string {
    return `[secret ${this.name}: reveal() gives its value]`;
  }

  toJSON(): string {
    return this.toString();
  }

  [Symbol.toPrimitive](): string {
    return this.toString();
  }

  [inspect.custom](): string {
    return this.toString();
  }
}

function held(secret: Secret): Uint8Array {
  const value = values.get(secret);
  if (value === undefined) throw new TypeError("this is not a Secret of this process: ask the agent for it");
  return value;
}
