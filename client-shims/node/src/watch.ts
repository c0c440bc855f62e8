// What happens to some secrets, for `for await`.

import { Retry, isTemporary, sleep } from "./pause";
import { onAbort } from "./signals";
import { ChangeStream } from "./stream";
import type { Change, Opening } from "./stream";

/**
 * What happens to some secrets, one change after the other.
 *
 * It connects again where the connection is lost, and resumes where it was. It throws what waiting does not heal,
 * such as a `DeniedError`, and the reason of its signal.
 */
export class Watch implements AsyncIterableIterator<Change> {
  readonly #opening: Opening;
  readonly #stop: AbortController;
  readonly #signal: AbortSignal | undefined;
  readonly #letGo: () => void;
  readonly #changes: AsyncGenerator<Change, undefined>;
  #stream: Promise<ChangeStream> | undefined;

  /** @internal */
  constructor(opening: Opening, stop: AbortController, signal?: AbortSignal) {
    this.#opening = opening;
    this.#stop = stop;
    this.#signal = signal;
    this.#changes = this.#run();
    this.#letGo = onAbort(signal, () => this.#end(signal?.reason));
  }

  /** Opens the stream, which the first `next()` does otherwise. */
  async open(): Promise<void> {
    await (this.#stream ??= ChangeStream.open(this.#opening));
  }

  next(): Promise<IteratorResult<Change, undefined>> {
    return this.#changes.next();
  }

  /** Ends the watch. */
  return(): Promise<IteratorResult<Change, undefined>> {
    this.#letGo();
    this.#end(undefined);
    return this.#changes.return(undefined);
  }

  [Symbol.asyncIterator](): this {
    return this;
  }

  async *#run(): AsyncGenerator<Change, undefined> {
    const retry = new Retry();
    try {
      await this.open();
      for (;;) {
        const stream = await this.#stream!;
        retry.opened();
        const failure = yield* until(stream);
        stream.close();
        await this.#again(retry, failure, stream.lastId);
      }
    } catch (error) {
      if (!this.#stop.signal.aborted) throw error;
      if (this.#signal?.aborted) throw this.#signal.reason;
      return undefined;
    } finally {
      this.#letGo();
      this.#end(undefined);
    }
  }

  async #again(retry: Retry, failure: unknown, lastId: string | undefined): Promise<void> {
    const { signal } = this.#opening;
    for (let error = failure; ; ) {
      signal.throwIfAborted();
      if (!isTemporary(error)) throw error;
      await sleep(retry.pause(error), signal);
      try {
        await (this.#stream = ChangeStream.open(this.#opening, lastId));
        return;
      } catch (next) {
        error = next;
      }
    }
  }

  #end(reason: unknown): void {
    this.#stop.abort(reason);
    this.#stream?.then(
      (stream) => stream.close(),
      () => {},
    );
  }
}

/** The changes of one stream; returns why it ended. */
async function* until(stream: ChangeStream): AsyncGenerator<Change, unknown> {
  for (;;) {
    let change: Change;
    try {
      change = await stream.next();
    } catch (error) {
      return error;
    }
    yield change;
  }
}
