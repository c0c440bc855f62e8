"""docs/migrate: every page's bot, before and after, and the pages show exactly the code that runs here."""

import configparser
import contextlib
import http.server
import json
import re
import shlex
import shutil
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.fernet import Fernet

import fetching
from harness import KEYHATCH, ROOT, Agent, eventually
from hosts import HOME, MY_BOT, Host

DOCS, FILES = ROOT / "docs", ROOT / "tests" / "migrate"
KEY = "CANARY-migrate-4b1d"
WELCOME = "200 welcome\n"
BOT = """
[[bot]]
name = "my-bot"
match = { uid = 0 }
roles = ["my-bot"]
"""
POLICY = (FILES / "policy.toml").read_text()
# The bots of these tests are root's: a user of their own would have to be made.
OWN = POLICY.replace('user = "my-bot", unit = "my-bot.service"', "uid = 0")


@contextlib.contextmanager
def host(page, agent):
    with agent:
        yield Host(agent, FILES / page, KEY)


def imported(bot):
    """What an import told, and the names that were in the store then."""
    said = bot.script("import.sh")
    assert "CANARY" not in said
    return [line.split("\t")[0] for line in said.splitlines() if not line.startswith("app/key\t")]


def policy(page):
    return BOT + (FILES / page / "keyhatch.toml").read_text()


# The pages.


def test_environment():
    with host("environment", Agent(policy=OWN)) as bot:
        (bot.home / ".env").write_text(f"# the bot's own\nAPI_KEY='{KEY}'\nDB_PASSWORD=\"CANARY p w\"\n")
        assert bot.script("before.sh") == WELCOME * 2
        names = ["my-bot/API_KEY", "my-bot/DB_PASSWORD"]
        assert imported(bot) == [f"new {name}" for name in names * 2] + names
        assert not (bot.home / ".env").exists()
        assert bot.script("after.sh") == WELCOME * 2
        assert bot.run("node", "after.mjs").stdout == bot.run("python3", "after.py").stdout == WELCOME
        assert bot.script("after-environ.sh") == WELCOME
        assert "allow" in bot.script(FILES / "check.sh", etc={"keyhatch.toml": bot.agent.head, "conf.d/my-bot.toml": POLICY})
        assert "problem" not in bot.script(FILES / "doctor.sh")


def test_boto3_and_the_aws_cli(moto):
    moto.put("MySecretId", KEY)
    moto.put("Other", "CANARY-other")
    source = fetching.aws(moto, prefetch=["*"])
    with host("boto3", fetching.fetcher(source, policy=policy("boto3"), env=fetching.AWS_KEYS)) as bot:
        known = {"AWS_ENDPOINT_URL_SECRETS_MANAGER": moto.address, "AWS_DEFAULT_REGION": fetching.REGION,
                 "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        listed = lambda names: f"{WELCOME}{KEY}\nMySecretId\n{names}\nMySecretId\n"
        assert bot.script("before.sh", **known) == listed("MySecretId\tOther")
        eventually(lambda: bot.agent.read("aws/MySecretId").status == 200)
        assert bot.script("after.sh") == listed("MySecretId"), "what it may see, without credentials of its own"
        assert bot.run("python3", "after.py").stdout == WELCOME
        denied = bot.run(KEYHATCH, "bridge", "--", "aws", "secretsmanager", "get-secret-value", "--secret-id", "Other")
        assert denied.returncode != 0 and "AccessDeniedException" in denied.stderr and "CANARY" not in denied.stdout


def test_the_agent_of_aws():
    own = policy("aws-agent").replace("uid = 0", f"uid = {MY_BOT}")
    with host("aws-agent", Agent(policy=own, secrets={"aws/MySecretId": KEY})) as bot:
        assert bot.script("before.sh", network=True, beside=agent_of_aws) == WELCOME
        as_bot = "setpriv --reuid my-bot --regid my-bot --clear-groups bash -euo pipefail"
        done = bot.run("bash", "-euc", f"bash token.sh; {as_bot} after.sh; {as_bot} after-curl.sh", network=True, etc={})
        welcome, _, answer = done.stdout.partition("\n")
        assert welcome + "\n" == WELCOME and json.loads(answer)["SecretString"] == KEY, done


def agent_of_aws():
    """Answers as AWS's agent does; that one itself comes from no registry."""
    token = "CANARY-token"
    Path("/var/run/awssmatoken").write_text(token)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked = urlsplit(self.path)
            good = self.headers["X-Aws-Parameters-Secrets-Token"] == token and asked.path == "/secretsmanager/get"
            name, = parse_qs(asked.query)["secretId"]
            body = json.dumps({"Name": name, "SecretString": KEY}).encode()
            self.send_response(200 if good else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 2773), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_vault(bao):
    bao.put("app/api", {"key": KEY})
    with host("vault", fetching.fetcher(fetching.vault(bao), policy=policy("vault"))) as bot:
        known = {"VAULT_ADDR": bao.address, "VAULT_CACERT": str(bao.authority.file), "VAULT_TOKEN": bao.token}
        assert bot.script("before.sh", **known) == WELCOME + KEY
        assert bot.script("after.sh") == WELCOME + KEY
        assert bot.run("python3", "after.py").stdout == WELCOME
        rendered = bot.home / "bot.ini"
        (bot.home / "token").write_text(bao.token)
        assert bot.script_until(rendered, "before-template.sh", **known) == f"[api]\nkey = {KEY}\n"
        rendered.unlink()
        assert bot.script_until(rendered, "after-template.sh") == f"[api]\nkey = {KEY}\n"


def test_fernet():
    with host("fernet", Agent(policy=OWN)) as bot:
        key = Fernet.generate_key()
        (bot.home / "secrets.key").write_bytes(key)
        (bot.home / "secrets.enc").write_bytes(Fernet(key).encrypt(json.dumps({"api_key": KEY}).encode()))
        assert bot.run("python3", "before.py").stdout == WELCOME
        assert imported(bot) == ["new my-bot/api_key"] * 2 + ["my-bot/api_key"]
        assert sorted(file.name for file in bot.home.glob("secrets.*")) == []
        assert bot.run("python3", "after.py").stdout == WELCOME


def test_systemd():
    with host("systemd", Agent(policy=OWN)) as bot:
        credential = bot.home / "api-key"
        credential.write_text(KEY)
        before = unit(bot, "before.service")
        # What systemd does before it starts the command.
        name, source = before["LoadCredential"].split(":")
        folder = bot.home / "credentials"
        folder.mkdir()
        (folder / name).write_text((bot.home / Path(source).relative_to(HOME)).read_text())
        started = {"CREDENTIALS_DIRECTORY": str(HOME / "credentials")}
        assert bot.run(*shlex.split(before["ExecStart"]), **started).stdout == WELCOME
        shutil.rmtree(folder)
        bot.script("import.sh")
        assert not credential.exists()
        for after in ["after.service", "file.service"]:
            assert bot.run(*shlex.split(unit(bot, after)["ExecStart"])).stdout == WELCOME


def unit(bot, name):
    """The settings of a unit's [Service]."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str
    parser.read(bot.home / name)
    return parser["Service"]


# What the pages show.


PAGES = [DOCS / "migrate.md", *sorted((DOCS / "migrate").glob("*.md"))]


def shown(page):
    """Each block of a page with the file that the line before it links to."""
    text = page.read_text()
    blocks = list(re.finditer(r"^```\w*\n(.*?)^```$", text, re.M | re.S))
    assert blocks and text.count("```") == 2 * len(blocks)
    for block in blocks:
        above = text[:block.start()].rstrip("\n").rsplit("\n\n")[-1]
        links = re.findall(r"\]\(([^)]*tests/migrate/[^)]+)\)", above)
        assert links, f"{page.name}: no file is named above\n{block[1]}"
        yield (page.parent / links[-1]).resolve(), block[1]


@pytest.mark.anyone
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_block_of_a_page_is_a_file_that_runs_here(page):
    for file, block in shown(page):
        assert block == file.read_text(), f"{page.name} shows another {file.relative_to(ROOT)}"


@pytest.mark.anyone
def test_each_file_is_shown_and_run():
    pages = {file for page in PAGES for file, _ in shown(page)}
    files = {file for file in FILES.rglob("*") if file.is_file()}
    assert pages == files
    started = Path(__file__).read_text() + "".join(file.read_text() for file in files)
    assert [file.name for file in files if file.name not in started] == []


@pytest.mark.anyone
def test_every_page_is_in_the_list():
    index = (DOCS / "migrate.md").read_text()
    assert [page.name for page in PAGES[1:] if f"(migrate/{page.name}" not in index] == []
