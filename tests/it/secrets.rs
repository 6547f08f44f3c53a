//! Secrets from Vault, against a server in its shape: logins, leases, documents, and what is said when it is away.

use std::{fs, path::PathBuf, time::Duration};

use agent_executor::{
    secrets::{Asker, Config, Rules, Secrets, VaultConfig, VaultLogin},
    telemetry::scrub::Scrubber,
};
use anyhow::Result;
use futures::future::join_all;
use serde_json::json;

use crate::{
    servers,
    vault::{TOKEN_PREFIX, Vault},
};

/// How long tokens are good for.
const LEASE: Duration = Duration::from_hours(1);
const JWT: &str = "eyJ-pl4nt-jwt-2204";

fn jwt_file() -> Result<PathBuf> {
    let path = servers::scratch("jwt")?.join("token");
    fs::write(&path, format!("{JWT}\n"))?;
    Ok(path)
}

/// Secrets from `url`, which anybody may have.
fn secrets(url: &str, keep: Duration) -> Result<Secrets> {
    let login =
        VaultLogin::Kubernetes { mount: "kubernetes".into(), role: "executor".into(), jwt: jwt_file()? };
    let vault = VaultConfig {
        address: url.parse()?,
        namespace: None,
        mount: "kv".into(),
        path: "agents/prod".into(),
        login,
        keep,
    };
    let rules = Rules::parse(["*=*"]).map_err(anyhow::Error::msg)?;
    let config = Config { rules, vault: Some(vault), ..Config::default() };
    Ok(Secrets::new(config, &Scrubber::default()))
}

async fn started() -> Result<Vault> {
    let vault = Vault::start().await?;
    vault.allow("executor", JWT);
    vault.put(
        "kv/agents/prod/stripe",
        json!({ "value": "v4lue-of-stripe", "hook": "h00k-of-stripe", "port": 443 }),
    );
    Ok(vault)
}

/// Turns the clock on.
async fn later(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// The value, or the code and the sentence of what went wrong.
async fn ask(secrets: &Secrets, name: &str) -> String {
    match secrets.resolve(&Asker::inline(&"a".into()), name).await {
        Ok(secret) => secret.expose().to_owned(),
        Err(error) => format!("{} {}: {error}", error.code(), error.is_retryable()),
    }
}

#[tokio::test]
async fn a_name_is_a_document_and_what_stands_behind_the_dot_its_field() -> Result<()> {
    let vault = started().await?;
    let secrets = secrets(&vault.served.url, Duration::from_secs(600))?;
    assert_eq!(ask(&secrets, "stripe").await, "v4lue-of-stripe");
    assert_eq!(ask(&secrets, "stripe.hook").await, "h00k-of-stripe");
    assert_eq!(ask(&secrets, "stripe.port").await, "443");
    for unknown in ["stripe.none", "nothing"] {
        assert_eq!(
            ask(&secrets, unknown).await,
            format!("SECRET_UNKNOWN false: there is no secret '{unknown}'")
        );
    }
    let inside = vault.inside();
    assert_eq!(
        (inside.logins, inside.reads),
        (1, 2),
        "one login; a document is kept, that there is none is not"
    );
    Ok(())
}

#[tokio::test]
async fn what_changes_is_seen_when_nothing_is_kept() -> Result<()> {
    let vault = started().await?;
    let secrets = secrets(&vault.served.url, Duration::ZERO)?;
    assert_eq!(ask(&secrets, "stripe").await, "v4lue-of-stripe");
    vault.put("kv/agents/prod/stripe", json!({ "value": "r0tated" }));
    assert_eq!(ask(&secrets, "stripe").await, "r0tated");
    Ok(())
}

#[tokio::test]
async fn a_token_is_renewed_before_its_lease_ends_and_replaced_after_it() -> Result<()> {
    let vault = started().await?;
    let secrets = secrets(&vault.served.url, Duration::ZERO)?;
    let logins_and_renewals = || async {
        assert_eq!(ask(&secrets, "stripe").await, "v4lue-of-stripe");
        let inside = vault.inside();
        (inside.logins, inside.renewals)
    };
    assert_eq!(logins_and_renewals().await, (1, 0));
    later(LEASE / 2).await;
    assert_eq!(logins_and_renewals().await, (1, 0));
    later(LEASE / 4).await;
    assert_eq!(logins_and_renewals().await, (1, 1), "in the last third");
    later(LEASE * 2).await;
    assert_eq!(logins_and_renewals().await, (2, 1), "nobody has asked in the last third");
    Ok(())
}

#[tokio::test]
async fn many_who_need_a_token_at_once_have_it_of_one_login_or_its_refusal() -> Result<()> {
    let vault = started().await?;
    let secrets = secrets(&vault.served.url, Duration::ZERO)?;
    let all = || async { join_all((0..20).map(|_| ask(&secrets, "stripe"))).await };
    assert_eq!(all().await, ["v4lue-of-stripe"; 20], "a cold start");
    assert_eq!(vault.inside().asked, 1);
    later(LEASE * 3 / 4).await;
    assert_eq!(all().await, ["v4lue-of-stripe"; 20], "one renews, the others go on with what they have");
    assert_eq!(vault.inside().asked, 1);
    assert_eq!(vault.inside().renewals, 1);
    vault.inside().tokens.clear();
    assert_eq!(all().await, ["v4lue-of-stripe"; 20], "a revoked token is replaced");
    assert_eq!(vault.inside().asked, 2);
    later(LEASE).await;
    vault.inside().accounts.clear();
    assert!(all().await.iter().all(|told| told.ends_with("Vault answered 403 Forbidden to the login")));
    assert_eq!(vault.inside().asked, 3);
    Ok(())
}

#[tokio::test]
async fn what_a_policy_leaves_out_makes_no_login_for_each_question() -> Result<()> {
    let vault = started().await?;
    vault.inside().forbidden.insert("kv/agents/prod/closed".into());
    let secrets = secrets(&vault.served.url, Duration::ZERO)?;
    let all = || async {
        for told in join_all((0..20).map(|_| ask(&secrets, "closed"))).await {
            assert!(told.ends_with("Vault answered 403 Forbidden to the question for a secret"), "{told}");
        }
        assert_eq!(ask(&secrets, "stripe").await, "v4lue-of-stripe");
        vault.inside().asked
    };
    assert_eq!((all().await, all().await), (1, 1));
    later(Duration::from_secs(61)).await;
    assert_eq!((all().await, all().await), (2, 2), "the role may have got another policy");
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_away_or_says_no_is_a_reason_to_try_later_and_tells_nothing() -> Result<()> {
    let vault = started().await?;
    let here = secrets(&vault.served.url, Duration::ZERO)?;
    assert_eq!(ask(&here, "stripe").await, "v4lue-of-stripe");
    vault.inside().sealed = true;
    let sealed = ask(&here, "stripe").await;
    assert_eq!(
        sealed,
        "SECRET_UNAVAILABLE true: the secret 'stripe' cannot be read now: Vault answered 503 Service Unavailable to \
         the question for a secret"
    );
    vault.inside().sealed = false;
    assert_eq!(ask(&here, "stripe").await, "v4lue-of-stripe");
    vault.inside().accounts.clear();
    vault.inside().tokens.clear();
    later(LEASE).await;
    let refused = ask(&here, "stripe").await;
    assert!(refused.ends_with("Vault answered 403 Forbidden to the login"), "{refused}");
    let nowhere = secrets(&format!("http://127.0.0.1:{}", servers::free_port()?), Duration::ZERO)?;
    let away = ask(&nowhere, "stripe").await;
    assert!(away.ends_with("Vault cannot be reached: no connection"), "{away}");
    for told in [sealed, refused, away] {
        assert!(!told.contains(TOKEN_PREFIX) && !told.contains(JWT), "{told}");
    }
    Ok(())
}
