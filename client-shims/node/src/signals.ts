// Listening to an AbortSignal, for as long as that is of use.

import { setMaxListeners } from "node:events";

/** Calls `listener` once `signal` is aborted, at once where it is already; gives a function that lets go of it. */
export function onAbort(signal: AbortSignal | undefined, listener: () => void): () => void {
  if (signal === undefined) return () => {};
  if (signal.aborted) {
    listener();
    return () => {};
  }
  // Any number of calls may have one signal: to warn of a leak would be wrong.
  setMaxListeners(0, signal);
  signal.addEventListener("abort", listener, { once: true });
  return () => signal.removeEventListener("abort", listener);
}
