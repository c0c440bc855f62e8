// A real agent for tests: `keyhatchd dev` in a folder of its own.

import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const BUILT = fileURLToPath(new URL("../../../target/release", import.meta.url));
const KEYHATCHD = join(process.env.KEYHATCH_BIN ?? BUILT, "keyhatchd");

export class Agent {
  folder = mkdtempSync(join(tmpdir(), "keyhatch-node-"));
  socket = join(this.folder, "keyhatch.sock");
  #child;

  static async started() {
    const agent = new Agent();
    await agent.start();
    return agent;
  }

  async start() {
    this.#child = spawn(KEYHATCHD, ["dev", "--dir", this.folder], { stdio: ["ignore", "pipe", "inherit"] });
    // Its first words come once it serves.
    await once(this.#child.stdout, "data");
    this.#child.stdout.resume();
  }

  async stop(signal = "SIGTERM") {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    this.#child.kill(signal);
    await once(this.#child, "exit");
  }

  async restart(signal) {
    await this.stop(signal);
    await this.start();
  }

  put(name, value) {
    this.#ops(["store", "put", name], value);
  }

  remove(name) {
    this.#ops(["store", "rm", name]);
  }

  /** Takes these names from every bot. */
  deny(pattern) {
    const file = join(this.folder, "keyhatch.toml");
    const role = "[role.developer]\n";
    writeFileSync(file, readFileSync(file, "utf8").replace(role, `${role}deny = [{ secrets = ["${pattern}"] }]\n`));
    this.#ops(["reload"]);
  }

  seal() {
    this.#ops(["seal"]);
  }

  #ops(words, input = "") {
    execFileSync(KEYHATCHD, [...words, "--admin-socket", join(this.folder, "admin.sock")], { input, stdio: "pipe" });
  }

  async end() {
    await this.stop("SIGKILL");
    rmSync(this.folder, { recursive: true });
  }
}

if (!existsSync(KEYHATCHD)) throw new Error(`no ${KEYHATCHD}: build it, or set KEYHATCH_BIN to its folder`);
