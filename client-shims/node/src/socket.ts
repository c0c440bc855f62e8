// Where the agent listens, and whether what lies there is the agent's.
//
// Node cannot ask the kernel who is at the other end of a socket. So the socket file is opened without following
// its path again, its owner is read from that descriptor, and the connection goes through the same descriptor:
// what was looked at is what is connected to, whatever happens to the path meanwhile.

import * as fs from "node:fs";
import * as net from "node:net";
import * as path from "node:path";

import { RefusedError } from "./errors";

const DEFAULT_SOCKET = "/run/keyhatch/keyhatch.sock";

/** open(2): a descriptor that names a file, and neither reads nor writes it. Node has no constant for it. */
const O_PATH = 0o10000000;

/** The uid that stands for every uid without a mapping in this user namespace (user_namespaces(7)). */
const OVERFLOW_UID = 65534;

/** The socket of an agent. */
export interface Place {
  path: string;
  /** Nobody named it: the folder's owner proves nothing. */
  guessed: boolean;
}

/** The folder of a socket. */
export interface Folder {
  owner: number;
  /** Others than the owner can make files in it. */
  shared: boolean;
}

/** The socket named, else `$KEYHATCH_SOCKET`, else the host's agent if there is one, else the caller's own. */
export function find(named: string | undefined): Place {
  const explicit = named || process.env.KEYHATCH_SOCKET;
  if (explicit) return { path: explicit, guessed: false };
  if (fs.existsSync(DEFAULT_SOCKET)) return { path: DEFAULT_SOCKET, guessed: false };
  const runtime = process.env.XDG_RUNTIME_DIR;
  const folder =
    runtime && path.isAbsolute(runtime) ? path.join(runtime, "keyhatch") : `/tmp/keyhatch-${ownUid()}`;
  return { path: path.join(folder, "keyhatch.sock"), guessed: true };
}

/** Begins a connection to the agent at `place`; throws where there is no socket or it is not to be trusted. */
export function connect(place: Place): net.Socket {
  const file = openTrusted(place);
  const socket = net.connect(through(file));
  let open = true;
  const release = () => {
    if (open) fs.closeSync(file);
    open = false;
  };
  return socket.once("connect", release).once("close", release);
}

function openTrusted(place: Place): number {
  const folder = fs.openSync(path.dirname(place.path), O_PATH | fs.constants.O_DIRECTORY);
  let file: number;
  let facts: Folder;
  try {
    const { uid, mode } = fs.fstatSync(folder);
    facts = { owner: uid, shared: (mode & 0o022) !== 0 };
    file = fs.openSync(path.posix.join(through(folder), path.basename(place.path)), O_PATH);
  } finally {
    fs.closeSync(folder);
  }
  const { uid } = fs.fstatSync(file);
  if (trusted(uid, ownUid(), facts, place.guessed)) return file;
  fs.closeSync(file);
  throw new RefusedError(
    `the socket ${place.path} belongs to uid ${uid}, which is not trusted, so nothing was sent to it: ` +
      "name the socket of an agent that runs as root, as you, or as the owner of the socket's folder",
  );
}

/** A path that leads to what an open descriptor holds (proc(5)). */
function through(descriptor: number): string {
  return `/proc/self/fd/${descriptor}`;
}

/**
 * Root, the caller itself, or who owns the folder of the socket.
 *
 * The folder does not count for a path that was guessed: anyone can make `/tmp/keyhatch-UID` before its user does.
 * The overflow uid is many users in one, so it counts only as the owner of a folder where nobody else can put a
 * socket: that is the host's folder as a rootless container sees it.
 */
export function trusted(owner: number, own: number, folder: Folder, guessed: boolean): boolean {
  if (owner === OVERFLOW_UID) return folder.owner === owner && !folder.shared && (!guessed || own === owner);
  return owner === 0 || owner === own || (owner === folder.owner && !guessed);
}

function ownUid(): number {
  return process.geteuid?.() ?? OVERFLOW_UID;
}
