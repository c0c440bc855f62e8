//! What the configuration says of this host: do its accounts exist, can a bot write its own `exe`?
//!
//! Only with [`Depth::Full`]: a file that is checked elsewhere says nothing of the accounts there.

use std::collections::VecDeque;
use std::ffi::{CString, OsString};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::Depth;
use super::section::shown;
use crate::policy::{BotInput, Place, Report, Selectors};

/// Programs that run other programs: every script of theirs has the same image.
const INTERPRETERS: [&str; 20] = [
    "awk", "bash", "bun", "busybox", "dash", "deno", "dotnet", "env", "java", "ksh", "lua", "node",
    "nodejs", "perl", "php", "python", "ruby", "sh", "tclsh", "zsh",
];

/// As `path_resolution(7)`.
const MAX_LINKS: usize = 40;

/// The name of a user or group, which need not exist yet.
pub(super) fn checked_account(
    what: &str,
    name: &str,
    place: &Place,
    depth: Depth,
    report: &mut Report,
) -> Option<String> {
    let number = if what == "user" { "uid" } else { "gid" };
    let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/' | '*');
    let problem = if name.is_empty() || name.contains(odd) {
        Some(format!("is no {what} name, write one that exists"))
    } else if name.bytes().all(|byte| byte.is_ascii_digit()) {
        Some(format!(
            "is a number, write the {what}'s name, or in a bot `{number} = {name}`"
        ))
    } else {
        None
    };
    if let Some(why) = problem {
        report.error(place, format!("{what} {name:?} {why}"));
        return None;
    }
    if depth != Depth::ContentOnly && !exists(what, name) {
        let text = format!(
            "there is no {what} {name:?} on this host yet, nobody matches it until there is"
        );
        report.warning(place, text);
    }
    Some(name.to_owned())
}

fn exists(what: &str, name: &str) -> bool {
    match what {
        "user" => User::from_name(name).is_ok_and(|user| user.is_some()),
        _ => Group::from_name(name).is_ok_and(|group| group.is_some()),
    }
}

/// The checks of a bot's `exe`: it proves nothing where the bot can put another file there.
pub(super) fn check_exe(bot: &BotInput, report: &mut Report) {
    let Some(exe) = &bot.selectors.exe else {
        return;
    };
    let place = &bot.name.place;
    let steps = match walk(exe) {
        Ok(steps) => steps,
        Err(error) => {
            let text = format!(
                "exe {} cannot be found, {error}, nobody matches it until it is there",
                shown(exe)
            );
            report.warning(place, text);
            return;
        }
    };
    let who = Writer::of(&bot.selectors);
    if let Some(step) = steps.iter().find(|step| who.can_change(step)) {
        let text = format!(
            "exe {} proves nothing, since the bot {:?} can change {}, move it to where only root can write",
            shown(exe),
            bot.name.value,
            shown(&step.path)
        );
        report.error(place, text);
    }
    let Some(file) = steps.last() else {
        return;
    };
    if !file.metadata.is_file() {
        report.error(
            place,
            format!("exe {} is not a file, name the program itself", shown(exe)),
        );
    } else if is_script(&file.path) {
        let text = format!(
            "exe {} is a script, the running image is its interpreter, so that it never matches, select by user and unit",
            shown(exe)
        );
        report.warning(place, text);
    } else if is_interpreter(exe) || is_interpreter(&file.path) {
        let text = format!(
            "exe {} is an interpreter, so that every script of it matches, select by user and unit",
            shown(exe)
        );
        report.warning(place, text);
    }
}

fn is_script(path: &Path) -> bool {
    let mut start = [0; 2];
    let read = fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *b"#!"
}

fn is_interpreter(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // python3.12, ruby3.2, lua5.4
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit() || matches!(c, '.' | '-'));
    INTERPRETERS.contains(&name)
}

/// One folder, link or file on the way to a path.
struct Step {
    path: PathBuf,
    metadata: fs::Metadata,
}

/// Every folder and link that the kernel goes through from the root to `path`, and the file at last.
fn walk(path: &Path) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    let mut links = 0;
    let mut here = PathBuf::from("/");
    let mut todo = names(path);
    steps.push(Step::at(&here)?);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let next = here.join(&name);
        let step = Step::at(&next)?;
        if step.metadata.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(io::Error::from_raw_os_error(nix::libc::ELOOP));
            }
            let target = fs::read_link(&next)?;
            if target.is_absolute() {
                here = PathBuf::from("/");
            }
            for name in names(&target).into_iter().rev() {
                todo.push_front(name);
            }
        } else {
            here = next;
        }
        steps.push(step);
    }
    // A link may have been the last step, and its target an earlier folder.
    steps.push(Step::at(&here)?);
    Ok(steps)
}

fn names(path: &Path) -> VecDeque<OsString> {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

impl Step {
    fn at(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            metadata: fs::symlink_metadata(path)?,
        })
    }
}

/// Whose writing is looked for: that of a bot's user, as far as its selectors tell.
struct Writer {
    uid: Option<u32>,
    groups: Vec<u32>,
}

impl Writer {
    fn of(selectors: &Selectors) -> Self {
        let user = match (&selectors.user, selectors.uid) {
            (Some(name), _) => User::from_name(name).ok().flatten(),
            (None, Some(uid)) => User::from_uid(Uid::from_raw(uid)).ok().flatten(),
            (None, None) => None,
        };
        let mut groups: Vec<u32> = selectors.gid.into_iter().collect();
        if let Some(name) = &selectors.group
            && let Ok(Some(group)) = Group::from_name(name)
        {
            groups.push(group.gid.as_raw());
        }
        if let Some(user) = &user {
            groups.push(user.gid.as_raw());
            groups.extend(supplementary(user));
        }
        Self {
            uid: selectors.uid.or(user.map(|user| user.uid.as_raw())),
            groups,
        }
    }

    fn can_change(&self, step: &Step) -> bool {
        let metadata = &step.metadata;
        // Root can write anything, so that its own files say nothing.
        if self.uid == Some(0) {
            return false;
        }
        if self.uid == Some(metadata.uid()) {
            return true;
        }
        // In a sticky folder only a file's owner can replace it, and each file is a step of its own.
        let sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if metadata.is_symlink() || sticky {
            return false;
        }
        let in_group = self.groups.contains(&metadata.gid());
        metadata.mode() & 0o002 != 0 || (in_group && metadata.mode() & 0o020 != 0)
    }
}

fn supplementary(user: &User) -> Vec<u32> {
    let Ok(name) = CString::new(user.name.as_str()) else {
        return Vec::new();
    };
    let groups = getgrouplist(&name, user.gid).unwrap_or_default();
    groups.into_iter().map(Gid::as_raw).collect()
}
