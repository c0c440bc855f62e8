//! Tokens: got, renewed, lost, got again, and never by a storm.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::liar::{Act, Asked, Liar, data, login};
use super::{Scratch, app_role, config, fetch, found, name, trouble, vault};
use crate::config::{Vault as Config, VaultAuth};
use crate::sources::upstream::{Trouble, Upstream};
use crate::sources::vault::Vault;

fn with(address: &str, auth: VaultAuth) -> Config {
    let mut config = config(
        &[address.to_owned()],
        &[("secret", "")],
        &[("db/ro", "database/creds/ro")],
    );
    config.auth = auth;
    config
}

fn denied() -> Act {
    Act::Json(403, r#"{"errors":["permission denied"]}"#.into())
}

/// Tokens are numbered; only those from `good` on count.
fn numbered(good: Arc<AtomicUsize>) -> impl Fn(&Asked) -> Option<Act> {
    let logins = AtomicUsize::new(0);
    move |asked| {
        if asked.what.ends_with("/login") {
            let number = logins.fetch_add(1, Ordering::SeqCst);
            return Some(login(&format!("CANARY-{number}"), 3600));
        }
        let number: usize = asked.token.strip_prefix("CANARY-")?.parse().ok()?;
        (number < good.load(Ordering::SeqCst)).then(denied)
    }
}

async fn fifty(vault: &Vault) -> usize {
    let mut all = JoinSet::new();
    for _ in 0..50 {
        let inner = Arc::clone(&vault.inner);
        all.spawn(async move { inner.timed(inner.fetch(&name("app/db"))).await });
    }
    let answers = all.join_all().await;
    answers.into_iter().flatten().count()
}

#[tokio::test]
async fn a_revoked_token_costs_one_login_however_many_ask() {
    let good = Arc::new(AtomicUsize::new(0));
    let liar = Liar::new(numbered(Arc::clone(&good))).await;
    let scratch = Scratch::new();
    let secret = scratch.file("secret-id", "CANARY-secret-id\n");
    let (vault, _) = vault(&with(&liar.address, app_role(&secret, false)));
    assert_eq!(fifty(&vault).await, 50);
    assert_eq!(liar.count("POST auth/approle/login"), 1);
    assert_eq!(
        liar.last("POST auth/approle/login").body,
        r#"{"role_id":"role","secret_id":"CANARY-secret-id"}"#
    );
    good.store(1, Ordering::SeqCst);
    assert_eq!(fifty(&vault).await, 50);
    assert_eq!(liar.count("POST auth/approle/login"), 2);
}

#[tokio::test]
async fn a_failed_login_is_one_outage_for_all_that_wait() {
    let liar = Liar::new(|asked| {
        asked
            .what
            .ends_with("/login")
            .then(|| Act::Json(400, r#"{"errors":["CANARY"]}"#.into()))
    })
    .await;
    let scratch = Scratch::new();
    let secret = scratch.file("secret-id", "CANARY-secret-id");
    let (vault, _) = vault(&with(&liar.address, app_role(&secret, false)));
    assert_eq!(fifty(&vault).await, 0);
    assert_eq!(liar.count("POST auth/approle/login"), 1);
    let trouble = trouble(&vault, "app/db").await;
    assert!(matches!(trouble, Trouble::Outage { .. }));
    assert!(
        trouble.to_string().contains("secret id is wrong"),
        "{trouble}"
    );
}

#[tokio::test]
async fn a_token_that_cannot_look_itself_up_is_not_got_anew_for_each_no() {
    let liar = Liar::new(|asked| {
        let no = asked.what.contains("lookup-self") || asked.what.contains("forbidden");
        no.then(denied)
    })
    .await;
    let (vault, _) = super::simple(&liar.address);
    for _ in 0..3 {
        super::absent(&vault, "forbidden").await;
    }
    assert_eq!(liar.count("POST auth/cert/login"), 2);
}

#[tokio::test]
async fn a_wrapped_secret_id_is_unwrapped_once_and_kept() {
    let good = Arc::new(AtomicUsize::new(0));
    let numbered = numbered(Arc::clone(&good));
    let liar = Liar::new(move |asked| {
        if asked.what == "POST sys/wrapping/unwrap" {
            let known = asked.token.starts_with("CANARY-wrapping");
            return Some(if known {
                Act::Json(200, data(r#"{"secret_id":"CANARY-inside"}"#))
            } else {
                Act::Json(400, r#"{"errors":["wrapping token is not valid"]}"#.into())
            });
        }
        numbered(asked)
    })
    .await;
    let scratch = Scratch::new();
    let file = scratch.file("wrapped", "CANARY-wrapping-1\n");
    let (vault, arena) = vault(&with(&liar.address, app_role(&file, true)));
    found(&vault, "app/db").await;
    good.store(1, Ordering::SeqCst);
    found(&vault, "app/db").await;
    assert_eq!(liar.count("POST auth/approle/login"), 2);
    assert_eq!(liar.count("POST sys/wrapping/unwrap"), 1);
    assert!(
        liar.last("POST auth/approle/login")
            .body
            .contains("CANARY-inside")
    );
    // Sealed: nothing is kept, and what was used up does not come back.
    vault.forget();
    liar.all_closed().await;
    assert_eq!(arena.used(), 0);
    scratch.file("wrapped", "spent");
    assert!(
        trouble(&vault, "app/db")
            .await
            .to_string()
            .contains("used already")
    );
    assert_eq!(liar.count("POST sys/wrapping/unwrap"), 2);
}

#[tokio::test]
async fn a_token_file_is_read_again_when_its_token_is_refused() {
    let liar = Liar::new(|asked| {
        let bad = asked.token == "CANARY-old" && !asked.what.contains("mounts");
        bad.then(denied)
    })
    .await;
    let scratch = Scratch::new();
    let path = scratch.file("token", "CANARY-old\n");
    let (vault, _) = vault(&with(&liar.address, VaultAuth::TokenFile { path }));
    let why = trouble(&vault, "app/db").await.to_string();
    assert!(why.contains("expired, revoked"), "{why}");
    scratch.file("token", "CANARY-new\n");
    // The failed login is not repeated at once.
    while fetch(&vault, "app/db").await.is_err() {
        tokio::task::yield_now().await;
    }
    assert_eq!(liar.last("GET secret/data/").token, "CANARY-new");
}

#[tokio::test]
async fn a_jwt_is_read_anew_for_each_login() {
    let good = Arc::new(AtomicUsize::new(0));
    let liar = Liar::new(numbered(Arc::clone(&good))).await;
    let scratch = Scratch::new();
    let path = scratch.file("jwt", "CANARY.jwt.1");
    let auth = VaultAuth::Jwt {
        mount: "k8s/one".into(),
        role: "bot".into(),
        path,
    };
    let (vault, _) = vault(&with(&liar.address, auth));
    found(&vault, "app/db").await;
    scratch.file("jwt", "CANARY.jwt.2");
    good.store(1, Ordering::SeqCst);
    found(&vault, "app/db").await;
    let body = liar.last("POST auth/k8s/one/login").body;
    assert_eq!(body, r#"{"role":"bot","jwt":"CANARY.jwt.2"}"#);
}

#[tokio::test]
async fn a_token_is_renewed_ahead_of_its_end_and_got_anew_where_it_cannot_be() {
    let (renewed, again) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (tell, tell_again, logins) = (renewed.clone(), again.clone(), AtomicUsize::new(0));
    let liar = Liar::new(move |asked| {
        if asked.what.ends_with("/login") {
            if logins.fetch_add(1, Ordering::SeqCst) > 0 {
                tell_again.notify_one();
                return Some(login("CANARY-second", 3600));
            }
            return Some(login("CANARY-first", 2));
        }
        if asked.what == "POST auth/token/renew-self" {
            tell.notify_one();
            return Some(Act::Json(400, String::new()));
        }
        None
    })
    .await;
    let (vault, _) = super::simple(&liar.address);
    found(&vault, "app/db").await;
    renewed.notified().await;
    again.notified().await;
    drop(vault);
}

#[tokio::test]
async fn a_loan_ends_with_the_token_that_it_was_made_with() {
    let good = Arc::new(AtomicUsize::new(0));
    let numbered = numbered(Arc::clone(&good));
    let liar = Liar::new(move |asked| {
        if let Some(no) = numbered(asked) {
            return Some(no);
        }
        let lent = |data: &str| {
            format!(
                r#"{{"lease_id":"database/creds/ro/CANARY-lease","renewable":true,"lease_duration":7200,"data":{data}}}"#
            )
        };
        match asked.what.as_str() {
            "GET database/creds/ro" => Some(Act::Json(200, lent(r#"{"username":"u","password":"CANARY"}"#))),
            "POST sys/leases/renew" => Some(Act::Json(200, lent("null"))),
            "POST sys/leases/revoke" => Some(Act::Json(204, String::new())),
            _ => None,
        }
    })
    .await;
    let (vault, _) = vault(&with(
        &liar.address,
        VaultAuth::Cert {
            mount: "cert".into(),
            name: Some("host".into()),
        },
    ));
    let fetched = found(&vault, "db/ro").await;
    assert_eq!(&*fetched.value, br#"{"username":"u","password":"CANARY"}"#);
    assert!(!fetched.version.contains("CANARY"));
    let lease = fetched.lease.unwrap();
    assert!(lease.renewable);
    // The token lasts an hour, the loan would last two.
    assert!(lease.time.as_secs() <= 3600 && lease.time.as_secs() > 3000);
    assert!(vault.renew(&lease).await.unwrap().is_some());
    assert_eq!(
        liar.last("POST sys/leases/renew").body,
        r#"{"lease_id":"database/creds/ro/CANARY-lease"}"#
    );
    good.store(1, Ordering::SeqCst);
    found(&vault, "app/db").await;
    assert_eq!(vault.renew(&lease).await, Ok(None));
    assert_eq!(vault.revoke(lease).await, Ok(()));
    assert_eq!(liar.count("POST sys/leases/revoke"), 1);
}
