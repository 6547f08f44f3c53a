//! Secrets of definitions: who may name which, and where their values are.

use super::{Problem, Settings};
use crate::secrets;

impl Settings {
    /// The secret of a family for one name, and where it is.
    fn given(&self, list: &'static str, name: &str) -> Option<secrets::Given> {
        let member = self.of(list, name).found("")?;
        match &member.file {
            Some(file) => Some(secrets::Given::File(file.clone())),
            // Resolve has refused a secret without a value.
            None => Some(secrets::Given::Value(member.text.clone()?.into())),
        }
    }
}

/// The rules and the places.
pub(super) fn compose(settings: &Settings, problems: &mut Vec<Problem>) -> secrets::Config {
    let rules = settings.list("SECRETS_ALLOWED");
    let rules = secrets::Rules::parse(rules.iter().map(String::as_str)).unwrap_or_else(|error| {
        problems.push(Problem::new("SECRETS_ALLOWED", format!("cannot be used: {error}")));
        secrets::Rules::default()
    });
    let given = ["HTTP_TOOL_SECRETS", "SECRETS_NAMED"].into_iter().flat_map(|list| {
        let names = settings.list(list).into_iter();
        names.filter_map(move |name| settings.given(list, &name).map(|given| (name, given)))
    });
    secrets::Config {
        rules,
        open: settings.list("HTTP_TOOL_SECRETS"),
        given: given.collect(),
        folder: settings.path("SECRETS_DIR"),
        vault: vault(settings, problems),
    }
}

fn vault(settings: &Settings, problems: &mut Vec<Problem>) -> Option<secrets::VaultConfig> {
    let address = settings.address("VAULT_ADDR")?;
    let login = match (settings.secret("VAULT_TOKEN"), settings.optional_text("VAULT_AUTH_ROLE")) {
        (Some(token), _) => secrets::VaultLogin::Token(token),
        (None, Some(role)) => secrets::VaultLogin::Kubernetes {
            mount: settings.text("VAULT_AUTH_MOUNT"),
            role,
            jwt: settings.path("VAULT_JWT_FILE").expect("the table gives a default"),
        },
        (None, None) => {
            // The address alone may be there for Vault's own tools.
            if !settings.list("SECRETS_ALLOWED").is_empty() {
                let message = "is not set, nor is VAULT_TOKEN, but VAULT_ADDR asks for one of them";
                problems.push(Problem::new("VAULT_AUTH_ROLE", message));
            }
            return None;
        }
    };
    Some(secrets::VaultConfig {
        address,
        namespace: settings.optional_text("VAULT_NAMESPACE"),
        mount: settings.text("VAULT_KV_MOUNT"),
        path: settings.optional_text("VAULT_KV_PATH").unwrap_or_default(),
        login,
        keep: settings.span("SECRETS_CACHE_SECONDS"),
    })
}
