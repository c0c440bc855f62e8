// The agent's problem documents (RFC 9457), as errors.

import {
  BadRequestError, DeniedError, FailedError, KeyhatchError, NotFoundError, QuarantinedError, RateLimitedError,
  SealedError, UnavailableError, UpstreamFailedError, UpstreamTimeoutError,
} from "./errors";
import type { Refusal } from "./errors";
import { parse } from "./json";

type Kind = new (message: string, refusal: Refusal) => KeyhatchError;

const BY_CODE: Record<string, Kind> = {
  denied: DeniedError,
  quarantined: QuarantinedError,
  not_found: NotFoundError,
  sealed: SealedError,
  upstream_unavailable: UnavailableError,
  audit_unavailable: UnavailableError,
  upstream_failed: UpstreamFailedError,
  upstream_timeout: UpstreamTimeoutError,
  bad_request: BadRequestError,
};

/** For an answer that is no problem document. */
const BY_STATUS: Record<number, Kind> = {
  400: BadRequestError,
  403: DeniedError,
  404: NotFoundError,
  503: UnavailableError,
};

/** The error for an answer of `status` with `body`. */
export function problem(status: number, retryAfter: string | undefined, body: Buffer): KeyhatchError {
  const { code, detail, requestId } = read(body);
  const refusal = { code, status, requestId };
  const message = `${detail} (${describe(refusal)})`;
  if (code === "rate_limited" || (code === null && status === 429)) {
    return new RateLimitedError(message, refusal, milliseconds(retryAfter));
  }
  const kind = code === null ? BY_STATUS[status] : BY_CODE[code];
  return new (kind ?? FailedError)(message, refusal);
}

function read(body: Buffer): { code: string | null; detail: string; requestId: string | null } {
  const document = parse(body);
  if (typeof document?.code !== "string") {
    return { code: null, detail: "the answer says no more than its status", requestId: null };
  }
  const detail = typeof document.detail === "string" ? document.detail : document.title;
  return {
    code: oneLine(document.code),
    detail: typeof detail === "string" ? oneLine(detail) : "the request was refused",
    requestId: typeof document.request_id === "string" ? oneLine(document.request_id) : null,
  };
}

function describe({ code, status, requestId }: Refusal): string {
  if (code === null) return `status ${status}`;
  return requestId === null ? code : `${code}, request ${requestId}`;
}

function milliseconds(retryAfter: string | undefined): number | null {
  return retryAfter !== undefined && /^\d{1,6}$/.test(retryAfter) ? Number(retryAfter) * 1000 : null;
}

/** Text for a terminal or a log: a control character cannot start a line or an escape sequence of its own. */
function oneLine(text: string): string {
  return text.replace(/\p{Cc}/gu, "\u{fffd}");
}
