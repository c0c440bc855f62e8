// How long to wait before the next try, and waiting itself.

import { KeyhatchError, RateLimitedError } from "./errors";
import { onAbort } from "./signals";

const FIRST_PAUSE = 100;
const LONGEST_PAUSE = 10_000;
/** Before one who follows a secret asks again after a refusal: do not fill the audit log meanwhile. */
const HOPEFUL_PAUSE = 60_000;
/** A connection that held this long starts the pauses anew. */
const STEADY = 30_000;

/** When a watch that was lost is tried again. */
export class Retry {
  #failures = 0;
  #opened: number | undefined;

  /** The stream is open. */
  opened(): void {
    this.#opened = performance.now();
  }

  /** All is well: the pauses start anew. */
  reset(): void {
    this.#failures = 0;
  }

  /** The milliseconds to wait after `error`. */
  pause(error: unknown): number {
    if (this.#opened !== undefined && performance.now() - this.#opened > STEADY) this.reset();
    this.#opened = undefined;
    const pause = backoff(this.#failures, Math.random());
    this.#failures += 1;
    if (!isTemporary(error)) return HOPEFUL_PAUSE;
    if (error instanceof RateLimitedError) return Math.max(pause, error.retryAfter ?? 0);
    return pause;
  }
}

/** A long poll, which an agent may end before the caller's time is over: it is asked again then. */
export class Poll {
  readonly #end: number;
  #asked = 0;

  /** `wait` is in milliseconds. */
  constructor(wait: number) {
    this.#end = performance.now() + wait;
  }

  /** How many seconds to ask the agent to wait, now. */
  seconds(): number {
    this.#asked = performance.now();
    return Math.max(Math.ceil((this.#end - this.#asked) / 1000), 0);
  }

  /**
   * The milliseconds to wait before asking again, where nothing has changed; undefined once the time is over. An agent
   * that does not wait at all is asked once a second.
   */
  pause(): number | undefined {
    const now = performance.now();
    return now < this.#end ? Math.max(Math.min(this.#asked + 1000, this.#end) - now, 0) : undefined;
  }
}

/** Twice as long each time, less up to a half by chance: bots that lost an agent do not come back as one. */
export function backoff(failures: number, chance: number): number {
  const pause = Math.min(FIRST_PAUSE * 2 ** Math.min(failures, 10), LONGEST_PAUSE);
  return pause - (pause / 2) * chance;
}

/** Waits, unless `signal` ends it before; then its reason is thrown. */
export function sleep(milliseconds: number, signal: AbortSignal | undefined, ref?: boolean): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      letGo();
      resolve();
    }, milliseconds);
    if (ref === false) timer.unref();
    const letGo = onAbort(signal, () => {
      clearTimeout(timer);
      reject(signal?.reason);
    });
  });
}

/** Whether waiting may heal it. What is no error of this library is a fault of the program. */
export function isTemporary(error: unknown): boolean {
  return error instanceof KeyhatchError && error.temporary;
}
