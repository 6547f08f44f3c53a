//! Secrets from Vault, against a server in its shape: logins, leases, documents, and what is said when it is away.

use std::{fs, path::PathBuf, time::Duration};

use agent_executor::{
    secrets::{Asker, Config, Rules, Secrets, VaultConfig, VaultLogin},
    telemetry::scrub::Scrubber,
};
use anyhow::Result;
use serde_json::json;

use crate::{
    servers,
    vault::{TOKEN_PREFIX, Vault},
};

const WITHIN: Duration = Duration::from_secs(60);
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
    vault.inside().lease_seconds = 3;
    let secrets = secrets(&vault.served.url, Duration::ZERO)?;
    // Whoever asks in the last third of a lease renews it; a slow machine may miss that of one lease, not of all.
    let renewed =
        || async { ask(&secrets, "stripe").await == "v4lue-of-stripe" && vault.inside().renewals > 0 };
    servers::until("a token is renewed", WITHIN, renewed).await?;
    let logins = vault.inside().logins;
    vault.inside().tokens.clear();
    assert_eq!(ask(&secrets, "stripe").await, "v4lue-of-stripe", "a revoked token is replaced");
    assert!(vault.inside().logins > logins);
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
