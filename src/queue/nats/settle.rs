//! Tells the broker what became of a delivery.
//!
//! **Invariant:** an ack counts only when the consumer itself has answered. The client's own `double_ack` takes
//! the server's "no responders" for an answer, and an ack without an answer is lost when the server restarts.

use std::time::Duration;

use async_nats::{client::Request, connection::State};
use bytes::Bytes;
use tokio::time::{sleep, timeout};

use super::Nats;
use crate::queue::{Error, Receipt, Settlement};

/// How long the answer to one settlement may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often an ack or a term is tried; past it the redelivery finds the job done.
const TRIES: u32 = 3;
/// Pause before the next try, times the number of tries: JetStream comes up some time after the server.
const PAUSE: Duration = Duration::from_millis(250);

impl Nats {
    pub(super) async fn send_settlement(
        &self,
        receipt: &Receipt,
        settlement: Settlement,
    ) -> Result<(), Error> {
        match settlement {
            Settlement::Ack => self.confirmed(receipt, Bytes::from_static(b"+ACK"), TRIES).await,
            Settlement::Term => self.confirmed(receipt, Bytes::from_static(b"+TERM"), TRIES).await,
            // Tried once: a second nak would hit the message under the worker that the first one sent it to.
            Settlement::Nak(delay) => self.confirmed(receipt, nak(delay), 1).await,
            Settlement::Abandon => Ok(()),
        }
    }

    async fn confirmed(&self, receipt: &Receipt, body: Bytes, tries: u32) -> Result<(), Error> {
        let mut failure = String::new();
        for attempt in 0..tries {
            sleep(PAUSE * attempt).await;
            if let Err(error) = self.connected().await {
                failure = error.to_string();
                continue;
            }
            let request = Request::new().payload(body.clone()).timeout(Some(ANSWER_TIMEOUT));
            match self.client.send_request(receipt.0.clone(), request).await {
                Ok(_) => return Ok(()),
                Err(error) => failure = error.to_string(),
            }
        }
        Err(Error::Unavailable(format!("a settlement was not confirmed: {failure}")))
    }

    /// Sends all in one flush. Nothing is reported: a lost progress message is made up for by the next.
    pub(super) async fn send_progress(&self, receipts: &[Receipt]) {
        if receipts.is_empty() || self.client.connection_state() != State::Connected {
            return;
        }
        let send_all = async {
            for receipt in receipts {
                self.client.publish(receipt.0.clone(), Bytes::from_static(b"+WPI")).await?;
            }
            self.client.flush().await?;
            Ok::<_, async_nats::Error>(())
        };
        match timeout(ANSWER_TIMEOUT, send_all).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "progress could not be sent"),
            Err(_) => tracing::warn!("progress took too long to send"),
        }
    }
}

fn nak(delay: Duration) -> Bytes {
    if delay.is_zero() {
        return Bytes::from_static(b"-NAK");
    }
    format!(r#"-NAK {{"delay": {}}}"#, delay.as_nanos()).into()
}
