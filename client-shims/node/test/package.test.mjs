// The package as a registry would hand it out: packed, installed into a new project, imported, required, type-checked.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

const here = fileURLToPath(new URL("..", import.meta.url));
const project = mkdtempSync(join(tmpdir(), "keyhatch-package-"));
const options = { cwd: project, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] };
const run = (program, ...words) => execFileSync(program, words, options);

before(() => {
  const [{ filename }] = JSON.parse(run("npm", "pack", here, "--json", "--ignore-scripts", "--pack-destination", project));
  writeFileSync(join(project, "package.json"), '{"name":"bot","private":true}');
  run("npm", "install", "--offline", "--no-audit", "--no-fund", join(project, filename));
  for (const name of readdirSync(join(here, "test/consumer"))) cpSync(join(here, "test/consumer", name), join(project, name));
});

after(() => rmSync(project, { recursive: true }));

const compile = (...flags) => {
  const types = ["--types", "node", "--typeRoots", join(here, "node_modules/@types")];
  const always = ["--strict", "--target", "es2022", "--lib", "es2022", ...types];
  try {
    run(process.execPath, join(here, "node_modules/typescript/bin/tsc"), ...always, ...flags);
  } catch ({ stdout }) {
    assert.fail(stdout);
  }
};

test("it is installed alone: no dependency, and no file but what is built", () => {
  const installed = join(project, "node_modules");
  assert.deepEqual(readdirSync(installed).filter((name) => !name.startsWith(".")), ["keyhatch"]);
  const files = readdirSync(join(installed, "keyhatch"));
  assert.deepEqual(files.sort(), ["LICENSE", "LICENSE-APACHE", "LICENSE-MIT", "README.md", "dist", "package.json"]);
});

test("import and require work", () => {
  const imported = 'import keyhatch, { get } from "keyhatch"; console.log(typeof get, keyhatch.get === get)';
  assert.equal(run(process.execPath, "--input-type=module", "-e", imported), "function true\n");
  const required = 'const { get, Client } = require("keyhatch"); console.log(typeof get, new Client() instanceof Client)';
  assert.equal(run(process.execPath, "-e", required), "function true\n");
});

test("types resolve for both kinds of modules, and what they compile to runs", () => {
  compile("--module", "node16", "--moduleResolution", "node16", "imports.mts", "requires.cts");
  run(process.execPath, "imports.mjs");
  run(process.execPath, "requires.cjs");
});

test("types resolve as bundlers do it", () => {
  compile("--noEmit", "--module", "esnext", "--moduleResolution", "bundler", "imports.mts");
});
