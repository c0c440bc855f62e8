// What can go wrong, in classes that a program can match on. No error ever holds a value.

/** What kind of failure an error is. */
export type ErrorKind =
  | "Denied" | "Quarantined" | "NotFound" | "Sealed" | "Unavailable" | "RateLimited" | "BadRequest" | "Failed"
  | "UpstreamFailed" | "UpstreamTimeout"
  | "Refused" | "Unreachable" | "TimedOut" | "Protocol" | "Name" | "NoField" | "NotText";

/** What the agent said of a request that it did not grant; all null where it was not the agent that refused. */
export interface Refusal {
  code: string | null;
  status: number | null;
  requestId: string | null;
}

const NOT_THE_AGENT: Refusal = { code: null, status: null, requestId: null };

/** What every error of this library is. */
export abstract class KeyhatchError extends Error {
  /** @internal */
  static readonly kind: ErrorKind = "Failed";

  /** The agent's stable code, such as `denied`. */
  readonly code: string | null;
  /** The HTTP status. */
  readonly status: number | null;
  /** Leads to the audit record of the request. */
  readonly requestId: string | null;

  /** @internal */
  constructor(message: string, refusal: Refusal = NOT_THE_AGENT) {
    super(message);
    this.code = refusal.code;
    this.status = refusal.status;
    this.requestId = refusal.requestId;
  }

  /** `Denied`, `NotFound`, `Unreachable` and so on: the class without its `Error`. */
  get kind(): ErrorKind {
    return (this.constructor as typeof KeyhatchError).kind;
  }

  override get name(): string {
    return `${this.kind}Error`;
  }

  /** Whether the same request may well succeed a little later. */
  get temporary(): boolean {
    return false;
  }
}

/** The policy does not allow it, or there is no such secret: the agent gives the same answer for both. */
export class DeniedError extends KeyhatchError {
  static override readonly kind = "Denied";
}

/** This bot is quarantined until an operator releases it. */
export class QuarantinedError extends KeyhatchError {
  static override readonly kind = "Quarantined";
}

/** No such secret, version or field; only told to a bot that may read or list the name. */
export class NotFoundError extends KeyhatchError {
  static override readonly kind = "NotFound";
}

/** The agent is sealed: it holds no values until an operator unseals it. */
export class SealedError extends KeyhatchError {
  static override readonly kind = "Sealed";
  override get temporary(): boolean {
    return true;
  }
}

/** The source is down and the last good value too old, or no audit record can be kept. */
export class UnavailableError extends KeyhatchError {
  static override readonly kind = "Unavailable";
  override get temporary(): boolean {
    return true;
  }
}

/** The upstream of a route could not be asked, or gave no answer that can be passed on. */
export class UpstreamFailedError extends KeyhatchError {
  static override readonly kind = "UpstreamFailed";
  override get temporary(): boolean {
    return true;
  }
}

/** The upstream of a route was silent for too long. */
export class UpstreamTimeoutError extends KeyhatchError {
  static override readonly kind = "UpstreamTimeout";
  override get temporary(): boolean {
    return true;
  }
}

/** Too many requests. */
export class RateLimitedError extends KeyhatchError {
  static override readonly kind = "RateLimited";
  /** How many milliseconds to wait before asking again, where the agent said so. */
  readonly retryAfter: number | null;

  /** @internal */
  constructor(message: string, refusal: Refusal, retryAfter: number | null) {
    super(message, refusal);
    this.retryAfter = retryAfter;
  }

  override get temporary(): boolean {
    return true;
  }
}

/** The agent does not understand the request. */
export class BadRequestError extends KeyhatchError {
  static override readonly kind = "BadRequest";
}

/** Any other refusal, such as a fault of the agent's own. */
export class FailedError extends KeyhatchError {
  static override readonly kind = "Failed";
  override get temporary(): boolean {
    return (this.status ?? 0) >= 500;
  }
}

/** The socket is not the agent's, as far as its owner tells, so nothing was sent to it. */
export class RefusedError extends KeyhatchError {
  static override readonly kind = "Refused";
}

/** Nobody listens at the socket, or the connection broke. */
export class UnreachableError extends KeyhatchError {
  static override readonly kind = "Unreachable";
  override get temporary(): boolean {
    return true;
  }
}

/** The agent did not answer in time. */
export class TimedOutError extends KeyhatchError {
  static override readonly kind = "TimedOut";
  override get temporary(): boolean {
    return true;
  }
}

/** The answer is not one that an agent gives. */
export class ProtocolError extends KeyhatchError {
  static override readonly kind = "Protocol";

  /** @internal */
  constructor(what: string) {
    super(`the answer is not one of a Keyhatch agent: ${what}`);
  }
}

/** The text asked for is not a secret name, so nothing was sent. */
export class NameError extends KeyhatchError {
  static override readonly kind = "Name";
}

/** The value is not a JSON object with this field. */
export class NoFieldError extends KeyhatchError {
  static override readonly kind = "NoField";

  /** @internal */
  constructor(secret: string, field: string) {
    super(`the value of ${secret} is not a JSON object with a field ${JSON.stringify(field)}`);
  }
}

/** The value is not UTF-8 text. */
export class NotTextError extends KeyhatchError {
  static override readonly kind = "NotText";

  /** @internal */
  constructor(secret: string) {
    super(`the value of ${secret} is not UTF-8 text: read it with revealBytes()`);
  }
}
