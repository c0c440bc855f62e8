// Calling a function with each new value of a secret.

import { Span } from "./exchange";
import { follow } from "./follow";
import type { Secret } from "./secret";
import { ChangeStream } from "./stream";
import type { Change, Opening } from "./stream";

/** How `onRotate` behaves. */
export interface RotateOptions {
  /** Ends it, as the function does that `onRotate` gives. */
  signal?: AbortSignal;
  /** Whether it keeps the process alive; it does not unless asked. */
  ref?: boolean;
  /** Told what is wrong while it cannot watch, and what the function threw. */
  onError?: (error: unknown) => void;
}

/** Called with the new value. The next call waits for what it returns. */
export type Rotated = (secret: Secret) => unknown;

/** Calls `rotated` until the signal of `opening` ends it. Resolves once the secret is watched. */
export async function onRotate(
  opening: Opening,
  get: () => Promise<Secret>,
  rotated: Rotated,
  onError: RotateOptions["onError"],
): Promise<void> {
  const { stream, version } = await begin(opening);
  let seen = version;
  const heard = async ({ version }: Change) => {
    if (version === null || version === seen) {
      seen = version;
      return;
    }
    const secret = await get();
    seen = secret.version;
    await tell(rotated, secret, onError);
  };
  const lost = (error: unknown) => {
    if (!opening.signal.aborted) onError?.(error);
  };
  void follow(opening, { heard, lost }, stream);
}

/** A stream that has told how the secret stands: what comes next is a change. */
async function begin(opening: Opening): Promise<{ stream: ChangeStream; version: string | null }> {
  const stream = await ChangeStream.open({ ...opening, ref: true });
  const span = new Span(opening.connections, opening.timeout, opening.signal);
  span.signal.addEventListener("abort", () => stream.close());
  try {
    const { version } = await stream.next();
    if (!opening.ref) stream.unref();
    return { stream, version };
  } catch (error) {
    stream.close();
    throw span.signal.aborted ? span.signal.reason : error;
  } finally {
    span.close();
  }
}

/** What the caller's function throws is no fault of the watch: it goes where errors of a listener go. */
async function tell(rotated: Rotated, secret: Secret, onError: RotateOptions["onError"]): Promise<void> {
  try {
    await rotated(secret);
  } catch (error) {
    if (onError !== undefined) return onError(error);
    queueMicrotask(() => {
      throw error;
    });
  }
}
