"""An agent with one rotation, and a driver program for it.

The program writes down what it is asked and takes the value where it is told to, as a server would; at a step that is
held, it waits.
"""

import json
import os
import signal

from harness import CANARY, ROOT_AND_ALICE, Agent, eventually

POLICY = ROOT_AND_ALICE.replace('["reader"]', '["reader", "rotator"]', 1) + """
[role.rotator]
grants = [{ secrets = ["app/**"], actions = ["rotate"] }]
"""

# create answers CANARY-N; set makes it what the far side accepts, too; finish makes it the only one.
DRIVER = """#!/bin/sh
dir=%(dir)s
input=$(cat)
value() { printf '%%s' "$input" | sed -n "s/.*\\"$1\\":{\\"version\\":\\"[^\\"]*\\",\\"value\\":\\"\\([^\\"]*\\)\\".*/\\1/p"; }
echo "$1 $(value current) $(value pending)" >> $dir/calls
if [ -e $dir/hold-$1 ]; then : > $dir/held-$1; sleep 30; fi
[ -e $dir/fail-$1 ] && exit 3
case $1 in
create) n=$(cat $dir/count); n=$((n + 1)); echo $n > $dir/count; printf '{"value": "CANARY-%%s"}' $n ;;
set) printf '%%s\\n%%s\\n' "$(value current)" "$(value pending)" > $dir/accepted ;;
test) grep -qx -- "$(value pending)" $dir/accepted ;;
esac
"""


class Rotating(Agent):
    """An agent with one rotation of `app/key`, by a program unless another driver is given."""

    def __init__(self, rotation, secrets=None, **kwargs):
        super().__init__(policy=POLICY, start=False, secrets=secrets, **kwargs)
        self.far = self.dir / "far"
        self.far.mkdir(mode=0o700)
        (self.far / "count").write_text("0")
        (self.far / "accepted").write_text(CANARY + "\n")
        program = self.far / "rotate"
        program.write_text(DRIVER % {"dir": self.far})
        program.chmod(0o700)
        host = os.uname().nodename
        self.exec = f'driver = {{ kind = "exec", command = ["{program}"], timeout = "40s" }}\nhost = "{host}"\n'
        self.rotate_by(rotation)
        self.start()

    def rotate_by(self, rotation):
        self.write_policy(POLICY + '[[rotation]]\nsecret = "app/key"\n' + rotation.replace("EXEC", self.exec))

    def calls(self):
        try:
            return [line.split() for line in (self.far / "calls").read_text().splitlines()]
        except FileNotFoundError:
            return []

    def value(self, version=""):
        reply = self.read("app/key" + version, Accept="application/octet-stream")
        return reply.body.decode() if reply.status == 200 else reply.status

    def rotate(self, uid=None, name="app/key"):
        return self.get(f"/v1/rotate/{name}", uid, method="POST", body=b"")

    def standing(self):
        return json.loads(self.ops("rotation", "status", "--json").stdout)["rotations"][0]

    def ended(self, count=1):
        """Waits until so many rotations are done."""
        return eventually(lambda: len(self.records(event="secret.rotated")) >= count and self.standing()["step"] is None)


GENERATED = 'every = "30d"\ngrace = "1h"\ndriver = { kind = "generate", length = 12, alphabet = "abc" }\n'


def release(agent):
    """Ends the sleep of a driver that is held."""
    for process in os.listdir("/proc"):
        try:
            if process.isdigit() and open(f"/proc/{process}/cmdline").read() == "sleep\x0030\x00":
                parent = open(f"/proc/{process}/stat").read().rsplit(")", 1)[1].split()[1]
                if f"{agent.far}/rotate" in open(f"/proc/{parent}/cmdline").read():
                    os.kill(int(process), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            pass
