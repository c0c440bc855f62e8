//! Several servers that count as one.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::liar::{Act, Liar, json};
use super::{config, found, trouble, vault};

fn two(first: Liar, second: &Liar) -> (Liar, super::Vault) {
    let addresses = [first.address.clone(), second.address.clone()];
    let (vault, _) = vault(&config(&addresses, &[("secret", "")], &[]));
    (first, vault)
}

#[tokio::test]
async fn a_standby_costs_one_try_and_the_good_one_is_remembered() {
    for status in [472, 473, 503, 500] {
        let standby = Liar::new(move |_| Some(Act::Json(status, String::new()))).await;
        let active = Liar::new(|_| None).await;
        let (standby, vault) = two(standby, &active);
        found(&vault, "app/db").await;
        found(&vault, "app/x").await;
        assert_eq!(standby.count(""), 1, "{status}");
    }
}

#[tokio::test]
async fn a_redirect_to_a_configured_address_is_followed_and_remembered() {
    let active = Liar::new(|_| None).await;
    let to = format!("location: {}/v1/anything\r\n", active.address);
    let standby = Liar::new(move |_| Some(Act::Bytes(json(307, &to, "")))).await;
    let (standby, vault) = two(standby, &active);
    found(&vault, "app/db").await;
    assert_eq!(standby.count(""), 1);
    assert_eq!(active.count("GET secret/data/app/db"), 1);
}

#[tokio::test]
async fn redirects_in_a_circle_end() {
    let first = Liar::new(|asked| {
        let host = asked
            .head
            .lines()
            .find_map(|line| line.strip_prefix("host: "))?;
        let to = format!("location: http://{host}/v1/x\r\n");
        Some(Act::Bytes(json(307, &to, "")))
    })
    .await;
    let (vault, _) = super::simple(&first.address);
    assert!(
        trouble(&vault, "x")
            .await
            .to_string()
            .contains("in a circle")
    );
    assert_eq!(first.count(""), 2);
}

#[tokio::test]
async fn a_server_that_has_not_caught_up_is_asked_again() {
    let asked = AtomicUsize::new(0);
    let liar = Liar::new(move |question| {
        let early = question.what.contains("/data/") && asked.fetch_add(1, Ordering::SeqCst) < 2;
        early.then(|| Act::Json(412, String::new()))
    })
    .await;
    let (vault, _) = super::simple(&liar.address);
    found(&vault, "app/db").await;
    assert_eq!(liar.count("GET secret/data/app/db"), 3);
}

#[tokio::test]
async fn every_request_says_who_asks_and_where() {
    let liar = Liar::new(|_| None).await;
    let (vault, _) = super::simple(&liar.address);
    found(&vault, "app/a+b=c@d").await;
    let asked = liar.last("GET secret/data/");
    assert_eq!(asked.what, "GET secret/data/app/a+b=c@d");
    assert_eq!(asked.token, "CANARY-token");
    assert!(asked.head.contains("x-vault-namespace: team\r\n"));
    assert!(asked.head.contains("x-vault-request: true\r\n"));
}
