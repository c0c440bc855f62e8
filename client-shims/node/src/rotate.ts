// Calling a function with each new value of a secret.

import { Interrupted } from "./connections";
import { UnreachableError } from "./errors";
import { Span, throughRestart } from "./exchange";
import { follow } from "./follow";
import type { Secret } from "./secret";
import { onAbort } from "./signals";
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

interface Begun {
  stream: ChangeStream;
  version: string | null;
}

/** A stream that has told how the secret stands: what comes next is a change. */
async function begin(opening: Opening): Promise<Begun> {
  const span = new Span(opening.connections, opening.timeout, opening.signal);
  try {
    return await throughRestart(span, () => attempt({ ...opening, signal: span.signal }));
  } finally {
    span.close();
  }
}

async function attempt(opening: Opening): Promise<Begun> {
  const { signal, ref } = opening;
  const stream = await ChangeStream.open({ ...opening, ref: true });
  const letGo = onAbort(signal, () => stream.close());
  try {
    const { version } = await stream.next();
    if (!ref) stream.unref();
    return { stream, version };
  } catch (error) {
    stream.close();
    if (signal.aborted) throw signal.reason;
    throw error instanceof UnreachableError ? new Interrupted(error, false, false) : error;
  } finally {
    letGo();
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
