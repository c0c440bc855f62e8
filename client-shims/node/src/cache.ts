// Values kept in this process, for callers who ask for it: only while a watch says that they are current.

import { follow } from "./follow";
import type { CallOptions } from "./client";
import type { Wanted } from "./name";
import type { Secret } from "./secret";
import type { Change, Opening } from "./stream";

/** What is kept of one name. */
interface Kept {
  /** The version that the agent serves, as its watch tells; undefined while it does not. */
  served: string | null | undefined;
  /** The whole value and its fields. */
  secrets: Map<string | undefined, Secret>;
}

/** Keeps values, each name with a watch of its own: one that is denied does not end the others. */
export class Cache {
  readonly #kept = new Map<string, Kept>();
  readonly #watch: (name: string) => Opening;
  readonly #read: (wanted: Wanted, options: CallOptions) => Promise<Secret>;

  constructor(watch: (name: string) => Opening, read: (wanted: Wanted, options: CallOptions) => Promise<Secret>) {
    this.#watch = watch;
    this.#read = read;
  }

  /** The value from here where it is known to be current, else from the agent. */
  async get(wanted: Wanted, options: CallOptions): Promise<Secret> {
    const held = this.#kept.get(wanted.name);
    const kept = held?.secrets.get(wanted.field);
    if (kept !== undefined && kept.version === held?.served && !kept.stale) return kept;
    const secret = await this.#read(wanted, options);
    (this.#kept.get(wanted.name) ?? this.#follow(wanted.name)).secrets.set(wanted.field, secret);
    return secret;
  }

  clear(): void {
    this.#kept.clear();
  }

  /** Begins after the first value was given: a name that is denied is not watched. */
  #follow(name: string): Kept {
    const kept: Kept = { served: undefined, secrets: new Map() };
    const heard = ({ version }: Change) => {
      kept.served = version;
      for (const [field, secret] of kept.secrets) {
        if (secret.version !== version) kept.secrets.delete(field);
      }
    };
    const lost = () => {
      kept.served = undefined;
    };
    this.#kept.set(name, kept);
    void follow(this.#watch(name), { heard, lost });
    return kept;
  }
}
