//! Every message about what a configuration should not say.

use super::*;

/// `wrong.txt` has texts, each followed by every line that it must lead to. A text that begins with `match:`,
/// `credentials:`, `rule:`, `source:`, `route:`, `rotation:` or `driver:` is that part of a file that is right otherwise.
fn expand(text: &str) -> String {
    /// What a text that gives one of these keys itself leaves out.
    const ROUTE: [&str; 5] = [
        "name = \"x\"",
        "upstream = \"https://h\"",
        "secret = \"a\"",
        "inject = { header = \"x\", value = \"{secret}\" }",
        "allow = [\"GET /v1\"]",
    ];
    const BOT: &str = "[[bot]]\nname = \"b\"\n";
    const ROTATION: &str = "[[rotation]]\nsecret = \"app/x\"\n";
    let (part, rest) = text.split_once(": ").unwrap_or_default();
    match part {
        "match" => format!("{BOT}match = {{ {} }}\nroles = []\n", rest.trim_end()),
        "rule" => format!(
            "{BOT}match = {{ uid = 1 }}\nroles = [\"r\"]\n[role.r]\ngrants = [\n  {{ {} }},\n]\n",
            rest.trim_end()
        ),
        "rotation" => format!("{ROTATION}driver = {{ kind = \"generate\" }}\n{rest}"),
        "driver" => format!(
            "{ROTATION}every = \"1d\"\ndriver = {{ {} }}\n",
            rest.trim_end()
        ),
        "credentials" => {
            let (selectors, credentials) = rest.trim_end().split_once(" | ").unwrap();
            format!(
                "{BOT}match = {{ {selectors} }}\nroles = []\ncredentials = {{ {credentials} }}\n"
            )
        }
        "source" => format!("[[source]]\nname = \"s\"\nkind = \"file\"\n{rest}"),
        "route" => {
            let given = |line: &&&str| {
                rest.starts_with(line.split('=').next().unwrap())
                    || rest.contains(&format!("\n{}", line.split('=').next().unwrap()))
            };
            let base: Vec<&str> = ROUTE.iter().filter(|line| !given(line)).copied().collect();
            format!("[[route]]\n{}\n{rest}", base.join("\n"))
        }
        _ => text.into(),
    }
}

#[test]
fn every_message_has_its_line_and_stands_alone() {
    let mut text = String::new();
    let mut wanted = Vec::new();
    let mut lines = include_str!("../wrong.txt").lines().peekable();
    while let Some(line) = lines.next() {
        match line.strip_prefix("> ") {
            Some(message) => wanted.push(message),
            None => text.extend([line, "\n"]),
        }
        let ends = lines.peek().is_none_or(|next| !next.starts_with("> "));
        if ends && !wanted.is_empty() {
            let found = errors(&expand(&text));
            assert_eq!(found, wanted, "{text}");
            assert!(found.iter().all(|line| !line.contains("CANARY")));
            text.clear();
            wanted.clear();
        }
    }
    assert!(text.is_empty());
}

#[test]
fn what_a_rotation_names_is_there_and_its_program_is_nobody_elses() {
    let one =
        |driver: &str| format!("[[rotation]]\nsecret = \"a\"\nevery = \"1d\"\ndriver = {driver}\n");
    let exec = one("{ kind = \"exec\", command = [\"/r\"] }");
    let config = read(&[("k.toml", &exec)]).unwrap();
    assert_eq!(
        lines(&config.warnings),
        [
            "k.toml:1: the rotation of \"a\" runs a program and has no `host`, each host with this configuration would do it, name one"
        ]
    );
    let twice = one("{ kind = \"generate\" }").repeat(2);
    assert_eq!(
        errors(&twice),
        ["k.toml:6: the rotation of \"a\" is already at k.toml:1, remove one"]
    );
    let folder = Folder::new();
    let program = folder.write("rotate", "#!/bin/sh\n");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o777)).unwrap();
    let exec = one(&format!("{{ kind = \"exec\", command = [{program:?}] }}"));
    let path = folder.write("k.toml", &exec);
    let found = lines(&load(&path, full()).unwrap_err());
    assert!(
        found[0].contains("the driver program") && found[0].contains("k.toml:4"),
        "{found:?}"
    );
}

#[test]
fn everything_wrong_is_told_at_once_and_in_order() {
    let text = "[audit]\nsync = 1\n[agent]\nx = 1\n[[bot]]\nname = \"b\"\nmatch = { uid = 1, user = 5 }\nroles = []\n";
    let places: Vec<String> = errors(text)
        .iter()
        .map(|line| line[..8].to_owned())
        .collect();
    assert_eq!(places, ["k.toml:2", "k.toml:4", "k.toml:7"]);
}

#[test]
fn the_same_thing_in_two_files_names_both_places() {
    let more = |text: &str| lines(&read(&[("k.toml", BOT), ("conf.d/a.toml", text)]).unwrap_err());
    assert_eq!(
        more("[[bot]]\nname = \"b\"\nmatch = { uid = 2 }\nroles = []\n"),
        [
            "conf.d/a.toml:2: bot \"b\" is already at k.toml:3, each is given once, rename or remove one"
        ]
    );
    assert_eq!(
        more("[role.r]\ndeny = []\n"),
        [
            "conf.d/a.toml:1: role \"r\" is already at k.toml:6, each is given once, rename or remove one"
        ]
    );
    let agents = [
        ("k.toml", "[agent]\nsocket = \"/a\"\n"),
        ("conf.d/a.toml", "[agent]\n\nsocket = \"/a\"\n"),
    ];
    assert_eq!(
        lines(&read(&agents).unwrap_err()),
        [
            "conf.d/a.toml:3: `socket` of [agent] is already at k.toml:2, each key is given once, remove one"
        ]
    );
}

#[test]
fn sources_that_cannot_be_told_apart() {
    let source = |name: &str, path: &str, prefix: &str| {
        format!(
            "[[source]]\nname = \"{name}\"\nkind = \"file\"\npath = \"{path}\"\nprefix = \"{prefix}\"\n"
        )
    };
    let pair = |second: String| errors(&(source("a", "/a", "a/") + &second));
    assert_eq!(
        pair(source("a", "/b", "b/")),
        ["k.toml:7: source \"a\" is already at k.toml:1, rename or remove one"]
    );
    assert!(
        pair(source("b", "/a", "b/"))[0]
            .starts_with("k.toml:9: source \"b\" has the same store \"/a\"")
    );
    assert!(
        pair(source("b", "/b", "a/"))[0]
            .starts_with("k.toml:10: source \"b\" has the same prefix \"a/\"")
    );
    let apart = source("a", "/a", "a/") + &source("b", "/b", "a/b/") + &source("c", "/c", "");
    assert_eq!(read(&[("k.toml", &apart)]).unwrap().sources.len(), 3);
}

#[test]
fn warnings_do_not_refuse() {
    let text = "[[bot]]\nname = \"b\"\nmatch = { uid = 1 }\nroles = []\n[role.r]\n";
    let found = read(&[("k.toml", text)]).unwrap().warnings;
    assert_eq!(
        lines(&found),
        [
            "k.toml:2: bot \"b\" has no roles, so that it is denied everything",
            "k.toml:5: no bot has role \"r\", so that it grants nothing",
        ]
    );
    let text = r#"
[[bot]]
name = "b"
match = { unit = "b.service" }
roles = ["r"]
credentials = { aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa = "app/a#x", b = "app/b", c = "app/c" }
[role.r]
grants = [{ secrets = ["app/a"] }, { secrets = ["app/c"], actions = ["list"] }]
deny = [{ secrets = ["app/b"] }]
"#;
    assert_eq!(
        lines(&read(&[("k.toml", text)]).unwrap().warnings),
        [
            &format!(
                "k.toml:6: credential {:?} and unit \"b.service\" have 84 bytes together, systemd asks for at most 83, \
                 shorten one",
                "a".repeat(75)
            ),
            "k.toml:6: credential \"b\" is app/b, and the deny at k.toml:9 keeps bot \"b\" from it: it would be refused",
            "k.toml:6: credential \"c\" is app/c, and no role of bot \"b\" grants to read it: it would be refused",
        ]
    );
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_errors_with_lines(text in ".{0,200}") {
        let _ = read(&[("k.toml", &text)]);
    }

    #[test]
    fn shuffled_words_of_configurations_too(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "[agent]", "[[bot]]", "[role.r]", "[[source]]", "[audit]", "[role]", "[[role.r]]", "name", "match",
                "roles", "grants", "deny", "secrets", "actions", "kind", "\"file\"", "uid", "unit", "keep", "=", "=",
                "=", "{", "}", "[", "]", ",", "\"a\"", "\"**/\"", "1", "-1", "true", "1.5", "1979-05-27", "\n", "\n",
                "\n", ".", "'''", "\\u0000", "\u{feff}",
            ]),
            0..40,
        )
    ) {
        let text = words.concat();
        if let Err(errors) = read(&[("k.toml", &text)]) {
            prop_assert!(!errors.is_empty());
            let last = text.matches('\n').count() + 1;
            prop_assert!(errors.iter().all(|error| (1..=last).contains(&error.place.line)), "{errors:?}");
        }
    }
}
