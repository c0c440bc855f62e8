// Keeping up with one secret in the background: what `onRotate` and the cache have in common.

import { Retry, sleep } from "./pause";
import { onAbort } from "./signals";
import { ChangeStream } from "./stream";
import type { Change, Opening } from "./stream";

/** Who keeps up. */
export interface Follower {
  /** How the secret stands: at the beginning of each stream, and with each change. */
  heard(change: Change): void | Promise<void>;
  /** The stream is broken: nothing is known until the next one tells. */
  lost(error: unknown): void;
}

/**
 * Tells `follower` until the signal of `opening` ends it. It never gives up: while the agent is away, or after the
 * grant is gone, it goes on trying. Each stream begins with how the secret stands, so that nothing is missed between.
 */
export async function follow(opening: Opening, follower: Follower, first?: ChangeStream): Promise<void> {
  const { signal, ref } = opening;
  const retry = new Retry();
  let stream = first;
  onAbort(signal, () => stream?.close());
  while (!signal.aborted) {
    try {
      stream ??= await ChangeStream.open(opening);
      for (;;) {
        await follower.heard(await stream.next());
        retry.reset();
      }
    } catch (error) {
      stream?.close();
      stream = undefined;
      follower.lost(error);
      if (!signal.aborted) await sleep(retry.pause(error), signal, ref).catch(() => {});
    }
  }
}
