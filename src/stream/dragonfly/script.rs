//! A Lua script on the server for another room: one round trip a call, over a connection of its own.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use fred::{
    error::Error as FredError,
    interfaces::{ClientLike, LuaInterface},
    types::{ClusterHash, CustomCommand, Value},
};

use super::{Config, Error, link::Link};

/// A script, and the way to the server that runs it.
pub struct Script {
    text: &'static str,
    link: Link,
    timeout: Duration,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// The name under which the server knows the script.
    name: Option<String>,
}

impl Script {
    /// Starts to connect to the server of `config`; it need not be there. Must be called inside a tokio runtime.
    pub fn open(config: Config, text: &'static str) -> Result<Self, Error> {
        let timeout = config.command_timeout;
        Ok(Self { text, link: Link::open(config)?, timeout, known: Mutex::default() })
    }

    /// Runs the script on `key`; it must answer a list of texts. Ends within a few times the command timeout, and is not
    /// tried again: whether a call that failed did its work is not known.
    pub async fn call(&self, key: &str, arguments: Vec<String>) -> Result<Vec<String>, Error> {
        self.link.connected(Duration::ZERO, self.timeout).await;
        let answer = match self.evaluate(key, arguments.clone()).await {
            // The server was started anew, or told to forget.
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                self.known.lock().unwrap_or_else(PoisonError::into_inner).name = None;
                self.evaluate(key, arguments).await
            }
            answer => answer,
        };
        self.link.note(answer.as_ref().err());
        answer.map_err(Error::Unavailable)
    }

    async fn evaluate(&self, key: &str, arguments: Vec<String>) -> Result<Vec<String>, FredError> {
        let client = self.link.client(self.timeout);
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).name.clone();
        let name = match known {
            Some(name) => name,
            None => {
                let name: String = client.script_load(self.text).await?;
                self.known.lock().unwrap_or_else(PoisonError::into_inner).name = Some(name.clone());
                name
            }
        };
        let head = [name, "1".to_owned(), key.to_owned()];
        let arguments: Vec<Value> = head.into_iter().chain(arguments).map(Value::from).collect();
        let command = CustomCommand::new_static("EVALSHA", ClusterHash::Random, false);
        client.custom::<Value, _>(command, arguments).await?.convert()
    }
}
