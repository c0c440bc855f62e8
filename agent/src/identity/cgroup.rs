//! What a cgroup path says about units.
//!
//! Only what the system manager itself named counts: the way from the root leads through slices alone to
//! the first `.service` or `.scope`. Below that, whoever the subtree was delegated to chooses the names.

/// The part of `/proc/PID/cgroup` (`cgroups(7)`) that is the unified hierarchy: its `0::PATH` line.
#[must_use]
pub fn unified(proc_cgroup: &str) -> Option<&str> {
    proc_cgroup
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        // A process whose cgroup is outside our namespace's root shows a path with `/..` in it, and one
        // whose cgroup was removed carries a mark; neither proves a unit.
        .filter(|path| !path.contains("/..") && !path.ends_with(" (deleted)"))
}

/// The system manager's unit of a cgroup path.
#[must_use]
pub fn unit(path: &str) -> Option<&str> {
    split_unit(path).map(|(unit, _)| unit)
}

/// The user manager's unit of a cgroup path: what stands below `user@UID.service`.
#[must_use]
pub fn user_unit(path: &str) -> Option<&str> {
    let (manager, below) = split_unit(path)?;
    let uid = manager.strip_prefix("user@")?.strip_suffix(".service")?;
    uid.parse::<u32>().ok()?;
    split_unit(below).map(|(unit, _)| unit)
}

/// The first service or scope reached through slices alone, and what stands below it.
///
/// systemd puts `_` before a name that the kernel could take for a file of its own, such as `memory.service`.
fn split_unit(path: &str) -> Option<(&str, &str)> {
    let mut rest = path.strip_prefix('/')?;
    loop {
        let (segment, below) = match rest.find('/') {
            Some(slash) => (&rest[..slash], &rest[slash..]),
            None => (rest, ""),
        };
        if is_kind(segment, ".service") || is_kind(segment, ".scope") {
            return Some((segment.strip_prefix('_').unwrap_or(segment), below));
        }
        if !is_kind(segment, ".slice") {
            return None;
        }
        rest = below.strip_prefix('/')?;
    }
}

fn is_kind(segment: &str, suffix: &str) -> bool {
    segment.len() > suffix.len() && segment.ends_with(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_real_paths() {
        for (path, system, user) in [
            (
                "/system.slice/support-bot.service",
                Some("support-bot.service"),
                None,
            ),
            (
                "/system.slice/system-bot.slice/bot@1.service",
                Some("bot@1.service"),
                None,
            ),
            (
                "/user.slice/user-1000.slice/session-4.scope",
                Some("session-4.scope"),
                None,
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/bot.service",
                Some("user@1000.service"),
                Some("bot.service"),
            ),
            ("/init.scope", Some("init.scope"), None),
            (
                "/system.slice/a.service/init.scope",
                Some("a.service"),
                None,
            ),
            (
                "/machine.slice/libpod-3f.scope/container",
                Some("libpod-3f.scope"),
                None,
            ),
            (
                "/system.slice/_memory.service",
                Some("memory.service"),
                None,
            ),
            ("/system.slice/__x.service", Some("_x.service"), None),
            ("/", None, None),
            ("/docker/3f/system.slice/support-bot.service", None, None),
            ("/system.slice", None, None),
            ("/system.slice/.service", None, None),
            ("/.slice/x.service", None, None),
            ("relative.service", None, None),
        ] {
            assert_eq!(unit(path), system, "{path}");
            assert_eq!(user_unit(path), user, "{path}");
        }
    }

    #[test]
    fn a_delegate_cannot_name_itself_after_a_unit() {
        let path = "/user.slice/user-1000.slice/user@1000.service/app.slice/support-bot.service";
        assert_eq!(unit(path), Some("user@1000.service"));
        let path = "/system.slice/docker.service/system.slice/support-bot.service";
        assert_eq!(unit(path), Some("docker.service"));
        assert_eq!(user_unit(path), None);
        assert_eq!(
            user_unit("/system.slice/user@x.service/app.slice/b.service"),
            None
        );
    }

    #[test]
    fn only_the_unified_line_counts() {
        let file = "4:memory:/system.slice/a.service\n0::/system.slice/b.service\n";
        assert_eq!(unified(file), Some("/system.slice/b.service"));
        assert_eq!(unified("1:name=systemd:/system.slice/a.service\n"), None);
        assert_eq!(unified("0::/../system.slice/a.service\n"), None);
        assert_eq!(unified("0::/system.slice/a.service (deleted)\n"), None);
    }
}
