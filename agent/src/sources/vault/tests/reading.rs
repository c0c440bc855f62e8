//! Values, versions and lists, as good servers give them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::liar::{Act, Liar, MADE, data, mount, versioned};
use super::{absent, config, found, name, simple, vault};
use crate::sources::upstream::{Answer, Standing, Trouble, Upstream};
use crate::sources::vault::Vault;

const VALUE: &str = r#"{ "b":"CANARY-\u00e9é", "a" : [1, 2.50],"n":null}"#;

fn metadata(current: u64, versions: &str) -> String {
    format!(r#"{{"current_version":{current},"oldest_version":0,"versions":{{{versions}}}}}"#)
}

fn made(number: u64, deleted: &str, destroyed: bool) -> String {
    format!(
        r#""{number}":{{"created_time":"{MADE}","deletion_time":"{deleted}","destroyed":{destroyed}}}"#
    )
}

async fn listed(vault: &Vault, folder: &str) -> Vec<(String, Option<String>)> {
    let mut names: Vec<_> = vault
        .list(folder)
        .await
        .unwrap()
        .into_iter()
        .map(|l| (l.name, l.version))
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_value_is_the_exact_text_and_its_version_the_number_and_a_mark_of_its_time() {
    let liar = Liar::new(|asked| asked.what.contains("/data/").then(|| versioned(VALUE))).await;
    let (vault, _) = simple(&liar.address);
    let fetched = found(&vault, "app/db").await;
    assert_eq!(&*fetched.value, VALUE.as_bytes());
    assert_eq!(fetched.version, "3-4257f5a4");
    assert_eq!(fetched.updated_at, MADE);
    assert!(fetched.lease.is_none());
}

#[tokio::test]
async fn kv_1_has_versions_by_value_and_the_time_of_first_sight() {
    let other = Arc::new(AtomicBool::new(false));
    let now = Arc::clone(&other);
    let liar = Liar::new(move |asked| match asked.what.as_str() {
        "GET sys/internal/ui/mounts/secret" => Some(mount("secret", "1")),
        "GET secret/app/db" => {
            let value = if now.load(Ordering::SeqCst) {
                "CANARY-2"
            } else {
                "CANARY-1"
            };
            Some(Act::Json(200, data(&format!(r#"{{"p":"{value}"}}"#))))
        }
        _ => None,
    })
    .await;
    let (vault, _) = simple(&liar.address);
    let first = found(&vault, "app/db").await;
    let again = found(&vault, "app/db").await;
    assert_eq!(&*first.value, br#"{"p":"CANARY-1"}"#);
    assert_eq!(
        (&first.version, &first.updated_at),
        (&again.version, &again.updated_at)
    );
    assert!(humantime::parse_rfc3339(&first.updated_at).is_ok());
    other.store(true, Ordering::SeqCst);
    assert_ne!(found(&vault, "app/db").await.version, first.version);
    assert_eq!(
        vault.standings(&[name("app/db")]).await,
        [Ok(Standing::Unknown)]
    );
    assert!(matches!(
        vault.previous(&name("app/db")).await,
        Ok(Answer::Absent(_))
    ));
    // Known after the first question.
    assert_eq!(liar.count("GET sys/internal"), 1);
}

#[tokio::test]
async fn standings_and_the_previous_version_come_from_the_metadata() {
    let liar = Liar::new(|asked| {
        let (gone, later) = ("2026-01-03T00:00:00Z", "2999-01-01T00:00:00Z");
        let all = |versions: &[String], current| {
            Some(Act::Json(
                200,
                data(&metadata(current, &versions.join(","))),
            ))
        };
        match asked.what.as_str() {
            "GET secret/metadata/plain" => all(
                &[
                    made(1, "", false),
                    made(2, "", true),
                    made(3, gone, false),
                    made(4, later, false),
                ],
                4,
            ),
            "GET secret/metadata/deleted" => all(&[made(1, "", false), made(2, gone, false)], 2),
            "GET secret/metadata/destroyed" => all(&[made(1, "", true)], 1),
            "GET secret/metadata/empty" => all(&[], 0),
            "GET secret/metadata/wrong" => Some(Act::Json(200, data("[]"))),
            "GET secret/metadata/secret" => Some(Act::Json(403, String::new())),
            "GET secret/data/plain?version=1" => Some(versioned(VALUE)),
            _ => None,
        }
    })
    .await;
    let (vault, _) = simple(&liar.address);
    let names = [
        "plain",
        "deleted",
        "destroyed",
        "empty",
        "none",
        "secret",
        "wrong",
    ]
    .map(name);
    let standings = vault.standings(&names).await;
    assert_eq!(standings[0], Ok(Standing::Version("4-4257f5a4".into())));
    for (name, standing) in names.iter().zip(&standings).take(5).skip(1) {
        assert_eq!(*standing, Ok(Standing::Absent), "{name}");
    }
    assert_eq!(standings[5], Ok(Standing::Unknown));
    assert!(matches!(standings[6], Err(Trouble::Unusable { .. })));
    let Ok(Answer::Found(previous)) = vault.previous(&name("plain")).await else {
        panic!("no previous version");
    };
    assert_eq!(&*previous.value, VALUE.as_bytes());
    assert!(matches!(
        vault.previous(&name("destroyed")).await,
        Ok(Answer::Absent(_))
    ));
}

#[tokio::test]
async fn a_detailed_list_tells_versions_and_leaves_out_what_is_deleted() {
    let liar = Liar::new(|asked| match asked.what.as_str() {
        "GET secret/detailed-metadata/?list=true" => {
            let there = metadata(1, &made(1, "", false));
            let gone = metadata(1, &made(1, "2026-01-03T00:00:00Z", false));
            Some(Act::Json(
                200,
                data(&format!(
                    r#"{{"keys":["a","b","c","dir/","odd name/","odd <name>"],"key_info":{{"a":{there},"b":{gone},"c":7,"dir/":{{}}}}}}"#
                )),
            ))
        }
        "GET secret/detailed-metadata/dir/?list=true" => Some(Act::Json(200, data(r#"{"keys":["x"],"key_info":{}}"#))),
        _ => None,
    })
    .await;
    let (vault, _) = vault(&config(
        std::slice::from_ref(&liar.address),
        &[("secret", "kv/")],
        &[("db/ro", "database/creds/ro")],
    ));
    let version = Some("1-4257f5a4".to_owned());
    let expected = [
        ("db/ro", None),
        ("kv/a", version),
        ("kv/c", None),
        ("kv/dir/x", None),
        ("kv/odd <name>", None),
        ("kv/odd name/", None),
    ];
    let expected = expected.map(|(name, version)| (name.to_owned(), version));
    assert_eq!(listed(&vault, "").await, expected);
    assert_eq!(listed(&vault, "db/").await, expected[..1]);
    assert_eq!(listed(&vault, "kv/dir/").await, expected[3..4]);
    assert_eq!(liar.count("GET secret/metadata/"), 0);
}

#[tokio::test]
async fn a_server_without_detailed_lists_tells_names() {
    let liar = Liar::new(|asked| {
        let keys = match asked.what.strip_prefix("GET secret/metadata/")? {
            "?list=true" => r#"{"keys":["a","dir/","closed/"]}"#,
            "dir/?list=true" => r#"{"keys":["x"]}"#,
            "closed/?list=true" => return Some(Act::Json(403, String::new())),
            _ => return None,
        };
        Some(Act::Json(200, data(keys)))
    })
    .await;
    let (vault, _) = simple(&liar.address);
    let expected = ["a", "dir/x"].map(|name| (name.to_owned(), None));
    assert_eq!(listed(&vault, "").await, expected);
    let asked = liar.count("GET secret/detailed-metadata/");
    assert_eq!(listed(&vault, "").await, expected);
    assert_eq!(liar.count("GET secret/detailed-metadata/"), asked);
    assert_eq!(listed(&vault, "none/").await, []);
}

#[tokio::test]
async fn a_list_that_is_forbidden_is_not_an_empty_one() {
    let liar = Liar::new(|asked| {
        asked
            .what
            .contains("list=true")
            .then(|| Act::Json(403, String::new()))
    })
    .await;
    let (vault, _) = simple(&liar.address);
    let why = vault.list("app/").await.unwrap_err().to_string();
    assert_eq!(why, "the policy lacks list on secret/metadata/app/");
}

#[tokio::test]
async fn folders_without_end_are_walked_only_so_far_as_names_go() {
    let liar = Liar::new(|asked| {
        let list = asked.what.contains("detailed-metadata");
        list.then(|| Act::Json(200, data(&format!(r#"{{"keys":["{}/"]}}"#, "x".repeat(99)))))
    })
    .await;
    let (vault, _) = simple(&liar.address);
    let names = listed(&vault, "").await;
    assert_eq!(names.len(), 1);
    assert_eq!(names[0].0.len(), 600);
    assert_eq!(liar.count("GET secret/detailed-metadata/"), 6);
}

#[tokio::test]
async fn a_mount_that_is_not_told_is_taken_for_kv_2_and_one_elsewhere_is_refused() {
    let liar = Liar::new(|asked| match asked.what.as_str() {
        "GET sys/internal/ui/mounts/secret" => Some(Act::Json(403, String::new())),
        "GET sys/internal/ui/mounts/team/kv" => Some(mount("team", "1")),
        _ => None,
    })
    .await;
    let (vault, _) = vault(&config(
        std::slice::from_ref(&liar.address),
        &[("secret", ""), ("team/kv", "t/")],
        &[],
    ));
    found(&vault, "app/db").await;
    let why = super::trouble(&vault, "t/x").await.to_string();
    assert!(
        why.contains("nothing is mounted at team/kv itself"),
        "{why}"
    );
}

#[tokio::test]
async fn data_without_a_lease_lasts_as_long_as_it_says() {
    let liar = Liar::new(|asked| {
        let body = match asked.what.as_str() {
            "GET a/ttl" => r#"{"password":"CANARY","ttl":77}"#,
            "GET a/past" => r#"{"certificate":"CANARY","expiration":1}"#,
            "GET a/plain" => r#"{"password":"CANARY","ttl":"soon"}"#,
            _ => return None,
        };
        Some(Act::Json(200, data(body)))
    })
    .await;
    let leases = ["ttl", "past", "plain"].map(|name| (name, ["a/", name].concat()));
    let leases = leases.each_ref().map(|(name, path)| (*name, path.as_str()));
    let (vault, _) = vault(&config(std::slice::from_ref(&liar.address), &[], &leases));
    let lease = found(&vault, "ttl").await.lease.unwrap();
    assert_eq!((lease.time.as_secs(), lease.renewable), (77, false));
    assert_eq!(vault.renew(&lease).await, Ok(None));
    assert_eq!(vault.revoke(lease).await, Ok(()));
    assert_eq!(found(&vault, "past").await.lease.unwrap().time.as_secs(), 1);
    assert!(found(&vault, "plain").await.lease.is_none());
    assert!(absent(&vault, "other").await.contains("no mount"));
    assert_eq!(liar.count("POST sys/"), 0);
}
