//! `tail`: the events of a thread, those kept in its stream and those to come.

use std::pin::pin;

use clap::Args;
use futures::StreamExt;

use super::{
    error::{Error, Exit},
    events::{Format, Painter},
    progress::Progress,
};
use crate::{
    config::Config,
    ids::ThreadId,
    stream::{
        EntryId, EventType,
        dragonfly::{Followed, Reader},
    },
};

const EXAMPLES: &str = "\
Examples:
  agent-executor tail thread-1
  agent-executor tail thread-1 --from 41-17 --json | jq .event_type
  agent-executor tail thread-1 --until-end";

#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The thread
    #[arg(value_name = "THREAD", value_parser = ThreadId::parse)]
    thread_id: ThreadId,
    /// Begin after the event with this id (`<epoch>-<seq>`)
    #[arg(long, value_name = "ID")]
    from: Option<EntryId>,
    /// Print each event as it came, one JSON object per line; where some are missing, an object with `notice`
    #[arg(long)]
    json: bool,
    /// Stop after the first end of a job
    #[arg(long)]
    until_end: bool,
}

pub(super) async fn run(config: &Config, arguments: &Arguments) -> Result<Exit, Error> {
    let progress = Progress::show("connecting to the server of live events");
    let reader = Reader::connect(config.dragonfly.clone()).await?;
    drop(progress);
    let format = if arguments.json { Format::Json } else { Format::Text };
    let mut painter = Painter::new(std::io::stdout(), format);
    let mut events = pin!(reader.follow(&arguments.thread_id, arguments.from));
    while let Some(followed) = events.next().await {
        let event = match followed? {
            Followed::Event(event) => event,
            Followed::Notice(notice) => {
                painter.notice(&notice)?;
                continue;
            }
        };
        painter.paint(event.json.as_bytes())?;
        if arguments.until_end && event.event_type == EventType::End.as_str() {
            break;
        }
    }
    painter.end_line()?;
    Ok(Exit::Success)
}
