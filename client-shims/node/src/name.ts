// Secret names and what is asked of one, checked before anything is sent.

import { NameError } from "./errors";

const MAX_NAME = 512;
const SEGMENT = /^[A-Za-z0-9._+=@-]+$/;

/** Which value of which secret. */
export interface Wanted {
  name: string;
  field: string | undefined;
  version: string | undefined;
}

/** `NAME` or `NAME#field`; the field may be given apart. */
export function wanted(text: string, field?: string, version?: string): Wanted {
  const hash = String(text).indexOf("#");
  if (hash < 0) return { name: checked(text), field, version };
  return { name: checked(text.slice(0, hash)), field: field ?? text.slice(hash + 1), version };
}

/** The name, where it is one. */
export function checked(name: string): string {
  const wrong = fault(name);
  if (wrong === undefined) return name;
  throw new NameError(`${JSON.stringify(name)} is not a secret name: ${wrong}`);
}

function fault(name: unknown): string | undefined {
  if (typeof name !== "string") return "a secret name is a string";
  if (name === "") return "a secret name cannot be empty";
  if (Buffer.byteLength(name) > MAX_NAME) return `a secret name has at most ${MAX_NAME} bytes`;
  for (const segment of name.split("/")) {
    if (segment === "") return "a secret name cannot have an empty segment: no slash at an end, no two in a row";
    if (segment === "." || segment === "..") return "a secret name cannot have a segment `.` or `..`";
    if (!SEGMENT.test(segment)) {
      return "a secret name has only letters, digits and . _ + = @ - between its slashes";
    }
  }
  return undefined;
}
