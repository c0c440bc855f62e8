"""docs/migrate: every page's bot, before and after, and the pages show exactly the code that runs here."""

import contextlib
import http.server
import json
import re
import shutil
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.fernet import Fernet

import fetching
import lab
from harness import BIN, KEYHATCH, ROOT, Agent, eventually
from hosts import CLONE_NEWNET, HOME, LIBC, MY_BOT, PYTHON, Host, Service, check

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


def test_boto3_and_the_aws_cli(moto):
    moto.put("MySecretId", KEY)
    moto.put("Other", "CANARY-other")
    source = fetching.aws(moto, prefetch=["*"])
    with host("boto3", fetching.fetcher(source, policy=policy("boto3"), env=fetching.AWS_KEYS)) as bot:
        listed = lambda names: f"{WELCOME}{KEY}\nMySecretId\n{names}\nMySecretId\n"
        assert bot.script("before.sh", **of_moto(moto)) == listed("MySecretId\tOther")
        eventually(lambda: bot.agent.read("aws/MySecretId").status == 200)
        assert bot.script("after.sh") == listed("MySecretId"), "what it may see, without credentials of its own"
        assert bot.run("python3", "after.py").stdout == WELCOME
        denied = bot.run(KEYHATCH, "bridge", "--", "aws", "secretsmanager", "get-secret-value", "--secret-id", "Other")
        assert denied.returncode != 0 and "AccessDeniedException" in denied.stderr and "CANARY" not in denied.stdout


def test_a_bot_that_asks_for_a_rotation(moto):
    moto.put("MySecretId", KEY)
    dropin, role = (FILES / "boto3" / "keyhatch.toml").read_text().split("[role.my-bot]")
    may, may_not = (BOT + dropin + text for text in [(FILES / "boto3" / "rotate.toml").read_text(), "[role.my-bot]" + role])
    with host("boto3", fetching.fetcher(fetching.aws(moto), policy=may, env=fetching.AWS_KEYS)) as bot:
        before = bot.run("python3", "rotate.py", **of_moto(moto))
        assert before.returncode == 0 and json.loads(before.stdout)["Name"] == "MySecretId", before
        # Without a function that makes one, moto leaves the new version without a value.
        moto.put("MySecretId", KEY)
        # Until RotateSecret is there: what it is told today.
        after = bot.run("bash", "-eu", "after-rotate.sh")
        assert after.returncode != 0 and "(InvalidRequestException)" in after.stderr, after
        assert "No rotation is configured for this secret on this host" in after.stderr
        bot.agent.write_policy(may_not)
        bot.agent.ops("reload")
        assert "(AccessDeniedException)" in bot.run("bash", "-eu", "after-rotate.sh").stderr


def of_moto(moto):
    """What a bot has in its environment that asks AWS itself."""
    return {"AWS_ENDPOINT_URL_SECRETS_MANAGER": moto.address, "AWS_DEFAULT_REGION": fetching.REGION, "AWS_ACCESS_KEY_ID": "x",
            "AWS_SECRET_ACCESS_KEY": "x"}


def test_the_agent_of_aws():
    own = policy("aws-agent").replace("uid = 0", f"uid = {MY_BOT}")
    with host("aws-agent", Agent(policy=own, secrets={"aws/MySecretId": KEY})) as bot:
        assert bot.script("before.sh", network=True, beside=agent_of_aws) == WELCOME
        as_bot = "setpriv --reuid my-bot --regid my-bot --clear-groups bash -euo pipefail"
        done = bot.run("bash", "-euc", f"bash token.sh; {as_bot} after.sh; {as_bot} after-curl.sh", network=True, users=True)
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


# A whole machine: systemd starts the bot, which is the user and the unit that the policy names.

WHY_NOT = lab.why_not()
DAEMON = """
[Service]
ExecStart=/usr/local/bin/keyhatchd run
"""
CONFIG = """
[[source]]
name = "local"
kind = "file"
path = "/var/lib/keyhatch/store"
key  = "file:/var/lib/keyhatch/store.key"
"""
# What a test adds to each unit of the page: that its start ends when the bot does, and what the bot finds here.
TESTED = """
[Service]
Type=oneshot
Environment=API_URL={url} PYTHONPATH=/usr/local/lib/keyhatch-python
"""


@pytest.fixture
def machine():
    with lab.Machine("bookworm") as machine:
        for program in ["keyhatchd", "keyhatch"]:
            machine.copy(BIN / program, f"/usr/local/bin/{program}", 0o755)
        shutil.copytree(PYTHON, machine.path("/usr/local/lib/keyhatch-python"))
        machine.write("/etc/keyhatch/keyhatch.toml", CONFIG)
        machine.write("/etc/keyhatch/conf.d/my-bot.toml", POLICY)
        machine.sh("useradd my-bot; mkdir -p /srv/my-bot /run/keyhatch /run/keyhatch-admin /var/lib/keyhatch")
        machine.sh("keyhatchd store init --store /var/lib/keyhatch/store --key file:/var/lib/keyhatch/store.key")
        machine.unit("keyhatchd.service", DAEMON)
        machine.systemctl("start", "keyhatchd")
        eventually(lambda: machine.path("/run/keyhatch-admin/admin.sock").exists())
        yield machine


@pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))
def test_systemd_and_the_first_steps(machine):
    for file in (FILES / "systemd").iterdir():
        machine.copy(file, HOME / file.name)
    machine.write(HOME / "api-key", KEY, 0o600)
    with machine_service(machine) as service:
        machine.write("/etc/systemd/system/my-bot.service.d/tested.conf", TESTED.format(url=service.url))
        welcome = [WELCOME.strip()]
        assert bot_says(machine, "before.service") == welcome
        machine.run("keyhatchd", "store", "put", "my-bot/API_KEY", stdin="CANARY-other")
        script(machine, FILES / "systemd" / "import.sh")
        assert not machine.path(HOME / "api-key").exists()
        assert "allow" in script(machine, FILES / "check.sh")
        assert bot_says(machine, "after.service") == welcome
        assert bot_says(machine, "file.service") == welcome
        bot, role = (FILES / "systemd" / "credentials.toml").read_text(), POLICY[POLICY.index("[role"):]
        machine.write("/etc/keyhatch/conf.d/my-bot.toml", bot + role)
        machine.run("keyhatchd", "reload")
        assert bot_says(machine, "same.service") == welcome
        doctor = f"[Service]\nExecStartPre={(FILES / 'doctor.sh').read_text()}"
        machine.write("/etc/systemd/system/my-bot.service.d/doctor.conf", doctor)
        *found, last = bot_says(machine, "after.service")
        assert [line.split()[0] for line in found] == ["ok"] * 6 and [last] == welcome, found


def machine_service(machine):
    """The service of the bot at the machine's own loopback."""
    made = []

    def make():
        with open(f"/proc/{machine.leader}/ns/net") as network:
            check(LIBC.setns(network.fileno(), CLONE_NEWNET))
        made.append(Service(KEY))

    # A thread may enter a network alone; what it has opened there stays there.
    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def script(machine, file):
    return machine.run("bash", "-euo", "pipefail", "-c", file.read_text()).stdout


def bot_says(machine, unit):
    """The lines that one start of this unit, as `my-bot.service`, has left in the journal."""
    said = lambda: [entry["MESSAGE"] for entry in machine.journal("_SYSTEMD_UNIT=my-bot.service")]
    before = len(said())
    machine.unit("my-bot.service", (FILES / "systemd" / unit).read_text())
    machine.systemctl("start", "my-bot", check=False)
    return said()[before:]


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
