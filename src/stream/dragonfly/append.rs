//! The script that appends and publishes the events of one thread, and what its answers mean.

use fred::{error::Error as FredError, types::Value};

/// Appends entries to a stream and publishes those that were not refused, in one step nobody can come between. A stream
/// that takes nothing lives no longer for it: one that is ahead of its thread goes in its time.
///
/// KEYS: the stream. ARGV: the channel, the length, the seconds, then id, entry and message (empty: the entry) each.
/// Answers the ids that were refused, with a `<` before those that another claim is ahead of; or `!` and why the server
/// takes none.
pub(super) const SCRIPT: &str = r"
local refused, appended, newest = {}, false, nil
for i = 4, #ARGV, 3 do
  local done = redis.pcall('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], ARGV[i], 'event', ARGV[i + 1])
  if type(done) == 'table' and done.err then
    if not string.find(done.err, 'equal or smaller', 1, true) then return {'!', done.err} end
    if not newest then
      local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
      newest = last and string.match(last[1], '^%d+') or ''
    end
    local mark = ''
    if string.match(ARGV[i], '^%d+') ~= newest then mark = '<' end
    refused[#refused + 1] = mark .. ARGV[i]
  else
    appended, newest = true, nil
    local message = ARGV[i + 2]
    if message == '' then message = ARGV[i + 1] end
    local sent = redis.pcall('PUBLISH', ARGV[1], message)
    if type(sent) == 'table' and sent.err then return {'!', sent.err} end
  end
end
if appended then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return refused
";

/// What the server says when it cannot do its work for now, whoever asks.
const SERVER_TROUBLE: [&str; 11] = [
    "OOM",
    "LOADING",
    "BUSY",
    "MISCONF",
    "READONLY",
    "MASTERDOWN",
    "NOREPLICAS",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOAUTH",
    "NOPERM",
];

/// Why a flush did not arrive as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Setback {
    /// The server does not know the script (any more).
    NoScript,
    /// The server says that it cannot work now.
    Server,
    /// No answer, or none that makes sense.
    Link,
}

/// What the server made of one thread's part of a flush.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// Appended and published, but for these.
    Appended(Refused),
    /// The server takes no such event.
    Refused(String),
    Failed(Setback),
}

/// Ids that the server did not take, since they are not above the last one of the stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Refused {
    /// The stream has events of the same claim up to here: these came before, from whomever.
    pub(super) there: Vec<String>,
    /// The stream has events of a later claim, as its ids say.
    pub(super) behind: Vec<String>,
}

/// What the server has made of a call of [`SCRIPT`].
pub(super) fn read(answer: Result<Value, FredError>) -> Reply {
    let error = match answer.and_then(|value| value.convert::<Vec<String>>()) {
        Ok(answer) => match answer.split_first() {
            Some((mark, [reason])) if mark == "!" => {
                return if is_server_trouble(reason) {
                    Reply::Failed(Setback::Server)
                } else {
                    Reply::Refused(reason.clone())
                };
            }
            _ => return Reply::Appended(refused(answer)),
        },
        Err(error) => error,
    };
    let details = error.details();
    Reply::Failed(if details.starts_with("NOSCRIPT") {
        Setback::NoScript
    } else if is_server_trouble(details) {
        Setback::Server
    } else {
        Setback::Link
    })
}

fn is_server_trouble(reply: &str) -> bool {
    // An error passed on by a script may keep the dash that marks errors in the protocol.
    let word = reply.trim_start_matches('-').split(' ').next().unwrap_or_default();
    SERVER_TROUBLE.contains(&word)
}

fn refused(ids: Vec<String>) -> Refused {
    let mut refused = Refused::default();
    for id in ids {
        match id.strip_prefix('<') {
            Some(id) => refused.behind.push(id.to_owned()),
            None => refused.there.push(id),
        }
    }
    refused
}

#[cfg(test)]
mod tests {
    use fred::error::ErrorKind;

    use super::*;

    fn answer(parts: &[&str]) -> Reply {
        read(Ok(Value::Array(parts.iter().map(|part| (*part).into()).collect())))
    }

    fn failure(kind: ErrorKind, details: &'static str) -> Reply {
        read(Err(FredError::new(kind, details)))
    }

    #[test]
    fn answers_say_what_arrived_and_what_never_will() {
        assert_eq!(answer(&[]), Reply::Appended(Refused::default()));
        let refused = Refused { there: vec!["2-1".into()], behind: vec!["1-1".into()] };
        assert_eq!(answer(&["<1-1", "2-1"]), Reply::Appended(refused));
        let taken = "WRONGTYPE Operation against a key holding the wrong kind of value";
        assert_eq!(answer(&["!", taken]), Reply::Refused(taken.into()));
        assert_eq!(answer(&["!", "OOM command not allowed"]), Reply::Failed(Setback::Server));
    }

    #[test]
    fn failures_tell_the_server_from_the_way_to_it() {
        let failed = |setback| Reply::Failed(setback);
        assert_eq!(failure(ErrorKind::Unknown, "NOSCRIPT No matching script."), failed(Setback::NoScript));
        assert_eq!(failure(ErrorKind::Unknown, "LOADING the dataset"), failed(Setback::Server));
        assert_eq!(failure(ErrorKind::Timeout, "Request timed out."), failed(Setback::Link));
        assert_eq!(failure(ErrorKind::Unknown, "ERR unknown command"), failed(Setback::Link));
    }
}
