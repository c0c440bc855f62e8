//! A configuration and the host that it is on: its files, its programs, its accounts.

use super::*;

#[test]
fn files_are_read_in_name_order() {
    let folder = Folder::new();
    let main = folder.write("keyhatch.toml", BOT);
    folder.write("conf.d/b.toml", "");
    folder.write("conf.d/a.toml", "");
    folder.write("conf.d/.#a.toml", "not toml");
    folder.write("conf.d/a.toml~", "not toml");
    let files = load(&main, Depth::ContentOnly).unwrap().files;
    let names: Vec<_> = files
        .iter()
        .map(|file| file.strip_prefix(&folder.0).unwrap())
        .collect();
    assert_eq!(
        names,
        ["keyhatch.toml", "conf.d/a.toml", "conf.d/b.toml"].map(Path::new)
    );
}

#[test]
fn a_file_that_cannot_be_read_is_the_only_error() {
    let folder = Folder::new();
    let missing = folder.0.join("none.toml");
    let found = lines(&load(&missing, full()).unwrap_err());
    assert!(found[0].starts_with(&format!(
        "{}: cannot be read, No such file",
        missing.display()
    )));
    assert_eq!(found.len(), 1);

    // The role is in the file that cannot be read: the bot that names it is not to blame.
    let main = folder.write(
        "k.toml",
        "[[bot]]\nname = \"b\"\nmatch = { uid = 1 }\nroles = [\"r\"]\n",
    );
    fs::create_dir(folder.0.join("conf.d")).unwrap();
    fs::write(folder.0.join("conf.d/x.toml"), b"\xff").unwrap();
    let found = lines(&load(&main, Depth::ContentOnly).unwrap_err());
    assert!(
        found[0].contains("conf.d/x.toml:1: cannot be read"),
        "{found:?}"
    );
    assert_eq!(found.len(), 1);
}

#[test]
fn the_example_loads() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd/keyhatch.toml");
    let text = fs::read_to_string(&example).unwrap();
    let config = load(&example, Depth::ContentOnly).unwrap();
    assert!(config.warnings.is_empty());
    // What is commented out must be valid too, and say the defaults.
    let uncommented: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with('[') || rest.contains(" = ") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let mut full = read(&[("k.toml", &uncommented)]).unwrap();
    full.agent.admins.clear();
    full.agent.metrics = None;
    assert_eq!((full.agent, full.audit), (config.agent, config.audit));
    assert_eq!(full.sources, config.sources);
}

fn on_host(exe: &Path, uid: u32) -> Result<Vec<String>, Vec<String>> {
    let text =
        format!("[[bot]]\nname = \"b\"\nmatch = {{ uid = {uid}, exe = {exe:?} }}\nroles = []\n");
    let documents = [Document::new("k.toml".into(), text)];
    match assemble(&documents, full(), Report::default()) {
        Ok(config) => {
            let mut found = lines(&config.warnings);
            found.retain(|line| {
                !line.contains("has no roles") && !line.contains("is not there yet")
            });
            Ok(found)
        }
        Err(errors) => Err(lines(&errors)),
    }
}

#[test]
fn an_exe_that_the_bot_can_change_is_refused() {
    const STRANGER: u32 = 54321;
    let folder = Folder::new();
    let own = nix::unistd::getuid().as_raw();
    let file = folder.write("bin/bot", "\x7fELF");
    let mode =
        |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&file, 0o755);
    assert_eq!(on_host(&file, STRANGER), Ok(vec![]));
    if own != 0 {
        assert!(on_host(&file, own).unwrap_err()[0].contains("proves nothing"));
    }
    mode(&file, 0o757);
    let shown = format!("{:?}", file.to_string_lossy());
    assert_eq!(
        on_host(&file, STRANGER).unwrap_err(),
        [format!(
            "k.toml:2: exe {shown} proves nothing, since the bot \"b\" can change {shown}, move it to where only root can write"
        )]
    );
    mode(&file, 0o755);
    mode(&folder.0.join("bin"), 0o777);
    assert!(on_host(&file, STRANGER).unwrap_err()[0].contains("can change"));
    // The link is in a safe place, what it leads through is not.
    symlink(&file, folder.0.join("link")).unwrap();
    assert!(on_host(&folder.0.join("link"), STRANGER).is_err());
    mode(&folder.0.join("bin"), 0o1777);
    assert_eq!(on_host(&folder.0.join("link"), STRANGER), Ok(vec![]));
    assert!(on_host(&folder.0, STRANGER).unwrap_err()[0].contains("is not a file"));
    symlink("loop", folder.0.join("loop")).unwrap();
    assert!(on_host(&folder.0.join("loop"), STRANGER).unwrap()[0].contains("cannot be found"));
}

#[test]
fn an_exe_that_says_little_is_warned_of() {
    let folder = Folder::new();
    let warning = |exe: &Path| on_host(exe, 54321).unwrap().join("\n");
    assert!(warning(&folder.write("bot", "#!/bin/sh\n")).contains("is a script"));
    assert!(warning(&folder.write("python3.12", "\x7fELF")).contains("is an interpreter"));
    assert!(warning(&folder.0.join("missing")).contains("cannot be found"));
    symlink("python3.12", folder.0.join("tool")).unwrap();
    assert!(warning(&folder.0.join("tool")).contains("is an interpreter"));
    assert_eq!(warning(&folder.write("bot2", "x")), "");
}

#[test]
fn accounts_are_looked_up_on_the_host_only() {
    let text = "[agent]\nadmins = [\"no-such-user-here\"]\n[[bot]]\nname = \"b\"\n\
                match = { user = \"root\", group = \"no-such-group-here\" }\nroles = [\"r\"]\n[role.r]\n";
    let documents = [Document::new("k.toml".into(), text.into())];
    let warnings = |depth| {
        let config = assemble(&documents, depth, Report::default()).unwrap();
        let mut found = lines(&config.warnings);
        found.retain(|line| !line.contains("is not there yet"));
        found
    };
    assert_eq!(
        warnings(full()),
        [
            "k.toml:2: there is no user \"no-such-user-here\" on this host yet, nobody matches it until there is",
            "k.toml:5: there is no group \"no-such-group-here\" on this host yet, nobody matches it until there is",
        ]
    );
    assert!(warnings(Depth::ContentOnly).is_empty());
}
