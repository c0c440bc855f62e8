"""The lab itself: a machine boots, remembers over a reboot, and leaves nothing behind."""

import pytest

import lab
from lab import RELEASES, Machine

WHY_NOT = lab.why_not()
pytestmark = pytest.mark.skipif(bool(WHY_NOT), reason=str(WHY_NOT))


@pytest.mark.parametrize("release", RELEASES)
def test_a_machine_boots_remembers_and_is_gone(release):
    with Machine(release) as machine:
        assert f'VERSION_ID="{RELEASES[release]}"' in machine.run("cat", "/etc/os-release").stdout
        assert machine.systemctl("is-system-running").stdout == "running\n"
        assert machine.sh("readlink /proc/1/exe").stdout == "/usr/lib/systemd/systemd\n"
        machine.unit("bot.service", "[Service]\nType=oneshot\nExecStart=/bin/sh -c 'grep ^0: /proc/self/cgroup; echo told'\n")
        machine.systemctl("start", "bot")
        entries = machine.journal("-u", "bot", "_SYSTEMD_UNIT=bot.service")
        assert [entry["MESSAGE"] for entry in entries] == ["0::/system.slice/bot.service", "told"]
        machine.sh("echo kept > /var/lib/kept")
        first = machine.run("cat", "/etc/machine-id").stdout
        machine.reboot()
        assert machine.run("cat", "/var/lib/kept").stdout == "kept\n"
        assert machine.run("cat", "/etc/machine-id").stdout == first
        cgroups, folder = list(machine.cgroups()), machine.dir
        assert cgroups and all(cgroup.exists() for cgroup in cgroups)
    assert not folder.exists()
    assert not any(cgroup.exists() for cgroup in cgroups)
    assert not (machine.lower / "var/lib/kept").exists()
