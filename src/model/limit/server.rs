//! The pool on the Redis-protocol server: one script, which does all sums of a lane at once by the server's clock.
//!
//! A lane is one hash, `agent-executor:model-limits:{<provider>:<hash of the key>}`: its marks, its pause, and of each process
//! when it was seen and how many calls it had under way. What a dead process had under way is forgotten with it.

use std::time::Duration;

use async_trait::async_trait;

use super::{Away, Draw, Drawn, Pool};
use crate::stream::dragonfly::{self, Script};

/// How long the server may take to answer a draw. Far more than it takes, and little beside a model's answer: doing without
/// the pool for a moment's delay would let processes use more than the limit together.
const PATIENCE: Duration = Duration::from_secs(2);
/// Silence after which a process counts as gone, with its calls: five signs of life.
const GONE: Duration = Duration::from_secs(15);
/// How long a lane outlives its last draw; by then nothing is owed.
const KEPT: Duration = Duration::from_mins(15);
/// Most that tokens may be owed ahead of now, in milliseconds: no mark of a lost clock holds calls up for ever.
const MOST_OWED: u32 = 600_000;

/// Draws from one lane. The sums are those of `bucket.rs`; times are milliseconds.
///
/// KEYS: the lane. ARGV: the process, its calls under way, the pause it reports, tokens it settles, calls at once, the four
/// rates, when a process is gone, how long the lane is kept, the most that may be owed, then the tokens of each call.
/// Answers the calls granted, the time to the next, processes, the pause.
const SCRIPT: &str = r"
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + tonumber(time[2]) / 1000
local me, mine = 'pod:' .. ARGV[1], tonumber(ARGV[2])
local most = tonumber(ARGV[5])
local request, request_burst = tonumber(ARGV[6]), tonumber(ARGV[7])
local token, token_burst = tonumber(ARGV[8]), tonumber(ARGV[9])
local gone, owed_most = now - tonumber(ARGV[10]), tonumber(ARGV[12])
local requests, tokens, pause, held, pods = now, now, now, mine, 1
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local name, value = all[i], all[i + 1]
  if name == 'requests' then requests = math.max(now, tonumber(value))
  elseif name == 'tokens' then tokens = math.max(now, tonumber(value))
  elseif name == 'pause' then pause = math.max(now, tonumber(value))
  elseif name ~= me then
    local seen, calls = string.match(value, '^(%S+) (%S+)$')
    if seen and tonumber(seen) > gone then
      held, pods = held + tonumber(calls), pods + 1
    else
      redis.call('HDEL', KEYS[1], name)
    end
  end
end
pause = math.max(pause, now + tonumber(ARGV[3]))
requests = math.min(requests, now + request_burst + request)
tokens = math.min(math.max(now, tokens + tonumber(ARGV[4]) * token), now + owed_most)
local granted, wait = 0, 0
for i = 13, #ARGV do
  local cost = tonumber(ARGV[i]) * token
  local owed = tokens - now
  wait = math.max(pause - now, requests - now - request_burst)
  if owed + cost > token_burst then
    if cost > token_burst then wait = math.max(wait, owed) else wait = math.max(wait, owed + cost - token_burst) end
  end
  if most > 0 and held >= most then wait = math.max(wait, 100) end
  if wait > 0.001 then break end
  granted, held, mine, wait = granted + 1, held + 1, mine + 1, 0
  requests, tokens = requests + request, tokens + cost
end
local text = function(number) return string.format('%.3f', number) end
redis.call('HSET', KEYS[1], 'requests', text(requests), 'tokens', text(tokens), 'pause', text(pause), me, text(now) .. ' ' .. string.format('%.0f', mine))
redis.call('PEXPIRE', KEYS[1], ARGV[11])
return {string.format('%.0f', granted), text(wait), string.format('%.0f', pods), text(pause - now)}
";

/// The pool on a server.
pub struct ServerPool {
    script: Script,
    /// Who this process is among those that share the pool.
    process: String,
}

impl ServerPool {
    /// The pool on the server of `config`, for the process with this name; no other may have it. The server need not be
    /// there. Must be called inside a tokio runtime.
    pub fn open(config: &dragonfly::Config, process: String) -> Result<Self, dragonfly::Error> {
        let config = dragonfly::Config { command_timeout: PATIENCE, ..config.clone() };
        Ok(Self { script: Script::open(config, SCRIPT)?, process })
    }
}

#[async_trait]
impl Pool for ServerPool {
    async fn draw(&self, lane: &str, draw: &Draw) -> Result<Drawn, Away> {
        let key = format!("agent-executor:model-limits:{{{lane}}}");
        let rates = draw.rates;
        let mut arguments = vec![
            self.process.clone(),
            draw.held.to_string(),
            millis(draw.pause),
            draw.settled.to_string(),
            rates.concurrent.to_string(),
        ];
        let times = [rates.request, rates.request_burst, rates.token, rates.token_burst];
        arguments.extend(times.map(|time| time.to_string()));
        arguments.extend([millis(GONE), millis(KEPT), MOST_OWED.to_string()]);
        arguments.extend(draw.calls.iter().map(u64::to_string));
        let answer = self.script.call(&key, arguments).await.map_err(away)?;
        read(&answer).ok_or_else(|| Away("the server's answer cannot be read".to_owned()))
    }
}

fn away(error: dragonfly::Error) -> Away {
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Away(format!("{error}{}", cause.unwrap_or_default()))
}

fn read(answer: &[String]) -> Option<Drawn> {
    let [granted, wait, pods, pause] = answer else { return None };
    let span = |text: &String| Duration::try_from_secs_f64(text.parse::<f64>().ok()?.max(0.0) / 1000.0).ok();
    let (granted, pods) = (granted.parse().ok()?, pods.parse().ok()?);
    Some(Drawn { granted, wait: span(wait)?, pods, pause: span(pause)? })
}

fn millis(span: Duration) -> String {
    span.as_millis().to_string()
}
