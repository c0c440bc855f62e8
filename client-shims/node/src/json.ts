// JSON that may hold a secret: no error of a parser, which quotes what it met, gets out of here.

type Members = Record<string, unknown>;

/** A JSON object; undefined where the bytes are none. */
export function parse(bytes: Buffer | string): Members | undefined {
  try {
    const document: unknown = JSON.parse(bytes.toString());
    return typeof document === "object" && document !== null && !Array.isArray(document)
      ? (document as Members)
      : undefined;
  } catch {
    return undefined;
  }
}

/** A field of a JSON object: the characters of a string, or the JSON text of anything else, exactly as it stands. */
export function field(text: string, name: string): string | undefined {
  const members = parse(text);
  if (members === undefined || !Object.hasOwn(members, name)) return undefined;
  const value = members[name];
  return typeof value === "string" ? value : source(text, name);
}

const TOKEN = /"(?:[^"\\]+|\\.)*"|[{}[\],:]|[^\s{}[\],:"]+/gs;

/** The text of member `name` of the valid object in `text`: JSON.parse would round 1.10 or a long number. */
function source(text: string, name: string): string | undefined {
  let depth = 0;
  let before = "";
  let start: number | undefined;
  let found: string | undefined;
  for (const { 0: token, index } of text.matchAll(TOKEN)) {
    if (token === "}" || token === "]") depth -= 1;
    if (start !== undefined && (depth === 0 || (depth === 1 && token === ","))) {
      found = text.slice(start, index).trim();
      start = undefined;
    }
    if (depth === 1 && token === ":" && JSON.parse(before) === name) start = index + 1;
    if (token === "{" || token === "[") depth += 1;
    before = token;
  }
  return found;
}
