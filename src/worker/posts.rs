//! Results on their way to `K_SINK`: beside the jobs, so that a sink that is away holds up no ack.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::sync::Semaphore;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

use crate::queue::ResultSink;

/// Results that may be on their way at once; each holds its event, of at most 900 KB.
const ON_THEIR_WAY: usize = 64;

/// How long the end of the process waits for them: they are safe in the results stream.
const LAST_POSTS: Duration = Duration::from_secs(3);

/// The posts of one process.
pub(super) struct Posts {
    places: Arc<Semaphore>,
    tracker: TaskTracker,
    end: CancellationToken,
}

impl Default for Posts {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(ON_THEIR_WAY)),
            tracker: TaskTracker::new(),
            end: CancellationToken::new(),
        }
    }
}

impl Posts {
    /// Sends `event` on its way, unless too many are there already.
    pub(super) fn post(&self, sink: Arc<dyn ResultSink>, event: Bytes) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::error!("the sink is too slow, a result was not posted; it is in the results stream");
            return;
        };
        let end = self.end.clone();
        let post = async move {
            end.run_until_cancelled(sink.deliver(event)).await;
            drop(place);
        };
        self.tracker.spawn(post.in_current_span());
    }

    /// Gives what is on its way a moment, then drops it.
    pub(super) async fn close(&self) {
        self.tracker.close();
        if tokio::time::timeout(LAST_POSTS, self.tracker.wait()).await.is_err() {
            tracing::warn!(
                left = self.tracker.len(),
                "results were not posted to the sink; they are in the stream"
            );
        }
        self.end.cancel();
        self.tracker.wait().await;
    }
}
