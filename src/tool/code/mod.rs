//! Tools that are code: a script that came with a definition, run in a sandboxed process by a [`CodeRunner`].
//!
//! **Invariant:** no code of a definition is executed in this process.
//! **Invariant:** a process runs one script once; nothing of one call is there in the next.

mod pool;
mod protocol;
mod sandbox;

pub use protocol::{CodeRunner, Reply, Request, Script};

use std::{
    collections::BTreeSet,
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::{Value as Json, json};

use super::{Answer, Call, Error, MAX_RESULT_CHARS, Tool, cut};
use crate::{
    graph::{Effect, SharedSchema, ToolDefinition, ToolRuntime},
    model::ToolSpec,
    telemetry::Pass,
    value::map_to_json,
};
use pool::{Host, Pool, Shared};

/// The host of Python scripts, written to be read on its own: `tool-hosts/python/host.py`.
const PYTHON_HOST: &str = include_str!("../../../tool-hosts/python/host.py");

/// Address space of the process that runs JavaScript, in bytes: the runtime of this binary reserves more than it
/// uses, and QuickJS keeps its own limit for the script.
const JAVASCRIPT_ADDRESS_SPACE: u64 = 8 << 30;

/// The operator's word on scripts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptConfig {
    /// `PYTHON_TOOLS`: whether Python scripts are run; they are not by default.
    pub python: bool,
    /// `PYTHON_TOOLS_INTERPRETER`: the Python that runs them, a name or a path.
    pub interpreter: String,
    /// `JAVASCRIPT_TOOLS`: whether JavaScript is run; it is by default.
    pub javascript: bool,
    /// `SCRIPT_TOOL_SANDBOX`: what a script is kept in.
    pub sandbox: Sandboxing,
    /// `SCRIPT_TOOL_NETWORK`: whether scripts reach the network; they do not by default.
    pub network: bool,
    /// `SCRIPT_TOOL_TIMEOUT_SECONDS`: longest call, start of the process not included.
    pub timeout: Duration,
    /// `SCRIPT_TOOL_MEMORY_BYTES`: memory of one process.
    pub memory_bytes: u64,
    /// `SCRIPT_TOOL_MAX_PROCESSES`: processes and threads of one call.
    pub processes: u64,
    /// `SCRIPT_TOOL_MAX_OUTPUT_BYTES`: longest answer.
    pub max_output_bytes: u64,
    /// `SCRIPT_TOOL_MAX_CONCURRENT`: calls at the same time in this process; others wait.
    pub max_concurrent: usize,
    /// `SCRIPT_TOOL_FIRST_USER`: the first of the user ids that scripts run under when this process is root's; each
    /// process has its own.
    pub first_user: u32,
    /// This program, whose hidden command `worker-js` runs JavaScript; none means the running one.
    pub program: Option<PathBuf>,
}

/// What a script is kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandboxing {
    /// Namespaces of its own beside limits; where the kernel does not allow them, no script is run.
    Strict,
    /// Limits, and another user when this process is root's. For pods that are sandboxes themselves.
    Limits,
}

impl Default for ScriptConfig {
    fn default() -> Self {
        Self {
            python: false,
            interpreter: "python3".into(),
            javascript: true,
            sandbox: Sandboxing::Strict,
            network: false,
            timeout: Duration::from_secs(30),
            memory_bytes: 512 << 20,
            processes: 16,
            max_output_bytes: 1 << 20,
            max_concurrent: 8,
            first_user: 64_100,
            program: None,
        }
    }
}

/// Runners by language.
pub(super) struct Runners {
    python: Option<Arc<dyn CodeRunner>>,
    javascript: Option<Arc<dyn CodeRunner>>,
    config: ScriptConfig,
}

impl std::fmt::Debug for Runners {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runners").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Runners {
    /// The runners that the operator allows. Starts no process.
    pub(super) fn new(config: &ScriptConfig) -> Self {
        let shared = Shared::new(config);
        let runner = |host| Arc::new(Pool::new(config.clone(), host, &shared)) as Arc<dyn CodeRunner>;
        let python = || {
            let arguments = ["-I", "-B", "-c", PYTHON_HOST].map(OsString::from).to_vec();
            let (program, processes) = (config.interpreter.clone().into(), Some(config.processes));
            runner(Host { program, arguments, processes, address_space: config.memory_bytes })
        };
        let javascript = || {
            let program = config.program.clone().or_else(|| std::env::current_exe().ok());
            let program = program.unwrap_or_else(|| "agent-executor".into()).into();
            // QuickJS cannot start a process; the runtime of this binary has a thread for each processor.
            let (processes, address_space) = (None, JAVASCRIPT_ADDRESS_SPACE);
            runner(Host { program, arguments: vec!["worker-js".into()], processes, address_space })
        };
        Self {
            python: config.python.then(python),
            javascript: config.javascript.then(javascript),
            config: config.clone(),
        }
    }

    fn of(&self, language: Language) -> Option<&Arc<dyn CodeRunner>> {
        match language {
            Language::Python => self.python.as_ref(),
            Language::JavaScript => self.javascript.as_ref(),
        }
    }

    /// The tool of a script; `None` when scripts of its language are not run here.
    pub(super) fn tool(
        &self,
        spec: &ToolSpec,
        definition: &ToolDefinition,
        runtime: &ToolRuntime,
    ) -> Option<CodeTool> {
        let language = Language::of(runtime)?;
        let runner = self.of(language)?.clone();
        let reaches_outside = language == Language::Python && self.config.reaches_outside();
        let by_reach = if reaches_outside { Effect::Irreversible } else { Effect::Pure };
        Some(CodeTool {
            // JavaScript has no types to make a schema of.
            is_typed: definition.parameters.is_some() || language == Language::JavaScript,
            effect: definition.effect.unwrap_or(by_reach),
            spec: spec.clone(),
            described: OnceLock::new(),
            runtime: runtime.clone(),
            runner,
            limits: self.config.clone(),
        })
    }

    /// The packages that a script needs and that are not there; none when scripts of its language are not run here.
    pub(super) async fn missing(&self, runtime: &ToolRuntime) -> Result<Vec<String>, Error> {
        let runner = Language::of(runtime).and_then(|language| self.of(language));
        let Some(runner) = runner.filter(|_| !runtime.dependencies.is_empty()) else { return Ok(Vec::new()) };
        let _turn = runner.turn().await;
        match runner.run(&Request::Check { dependencies: &runtime.dependencies }).await? {
            Reply::Checked { missing } => Ok(missing),
            Reply::Failed { error } => Err(Error::Script(error)),
            other @ (Reply::Described { .. } | Reply::Text { .. } | Reply::Command { .. }) => {
                Err(other.unexpected())
            }
            Reply::OutOfTime => Err(Error::Timeout(self.config.timeout)),
        }
    }
}

impl ScriptConfig {
    /// Whether a script can have an effect outside of its process.
    fn reaches_outside(&self) -> bool {
        self.network || self.sandbox == Sandboxing::Limits
    }
}

/// A language there is a runner for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    Python,
    JavaScript,
}

impl Language {
    /// The language of a script; Python when it names none.
    fn of(runtime: &ToolRuntime) -> Option<Self> {
        let name = runtime.language.as_deref().unwrap_or("python").to_ascii_lowercase();
        match name.as_str() {
            "python" | "python3" | "py" => Some(Self::Python),
            "javascript" | "js" => Some(Self::JavaScript),
            _ => None,
        }
    }
}

/// A tool that answers with what a script returns.
pub(super) struct CodeTool {
    spec: ToolSpec,
    /// What the script says of itself, once it has been asked; none when it could not say it.
    described: OnceLock<Option<ToolSpec>>,
    /// Whether the definition says all that there is to say.
    is_typed: bool,
    effect: Effect,
    runtime: ToolRuntime,
    runner: Arc<dyn CodeRunner>,
    limits: ScriptConfig,
}

impl CodeTool {
    fn script(&self) -> Script<'_> {
        Script {
            script: &self.runtime.script,
            name: &self.spec.name,
            dependencies: &self.runtime.dependencies,
            limit: MAX_RESULT_CHARS,
            seconds: self.limits.timeout.as_secs_f64(),
            memory: self.limits.memory_bytes,
        }
    }

    /// What the definition says, and the script where it says nothing.
    fn merged(&self, description: String, parameters: Json) -> Option<ToolSpec> {
        let parameters = SharedSchema::from(Some(parameters).filter(Json::is_object)?);
        parameters.compiled().ok()?;
        let mut spec = ToolSpec { parameters, ..self.spec.clone() };
        if spec.description.is_empty() {
            spec.description = cut(description);
        }
        Some(spec)
    }

    async fn answer(&self, call: &Call<'_>) -> Result<Answer, Error> {
        let state = call.state.iter().map(|(name, value)| (name.to_string(), value.to_json()));
        let request = Request::Call {
            script: self.script(),
            args: map_to_json(call.args),
            tool_call_id: call.id,
            idempotency_key: call.idempotency_key,
            state: Json::Object(state.collect()),
        };
        match self.runner.run(&request).await? {
            Reply::Text { content, status } => {
                // Postgres takes no NUL in JSON, and results end up there.
                let content = cut(content.replace('\0', "\u{FFFD}"));
                Ok(if status == "error" { Answer::error(content) } else { Answer::success(content) })
            }
            Reply::Command { update, messages } => {
                let mut command = json!({ "update": update, "messages": messages });
                without_nul(&mut command);
                Ok(Answer { is_command: true, ..Answer::success(command.to_string()) })
            }
            Reply::OutOfTime => Err(Error::Timeout(self.limits.timeout)),
            Reply::Failed { error } => Err(Error::Script(error)),
            other @ (Reply::Checked { .. } | Reply::Described { .. }) => Err(other.unexpected()),
        }
    }
}

#[async_trait]
impl Tool for CodeTool {
    fn spec(&self) -> &ToolSpec {
        self.described.get().and_then(Option::as_ref).unwrap_or(&self.spec)
    }

    fn effect(&self) -> Effect {
        self.effect
    }

    async fn prepare(&self) {
        if self.is_typed || self.described.get().is_some() {
            return;
        }
        let _turn = self.runner.turn().await;
        let said = self.runner.run(&Request::Describe { script: self.script() }).await;
        let described = match said {
            Ok(Reply::Described { description, parameters }) => self.merged(description, parameters),
            // Its calls say what is wrong with it; it takes any arguments.
            Ok(
                Reply::Checked { .. }
                | Reply::Text { .. }
                | Reply::Command { .. }
                | Reply::OutOfTime
                | Reply::Failed { .. },
            ) => None,
            // Another time it may go better.
            Err(_) => return,
        };
        // Somebody else may have been quicker, with the same.
        let _ = self.described.set(described);
    }

    async fn turn(&self) -> Option<Pass> {
        Some(self.runner.turn().await)
    }

    async fn call(&self, call: Call<'_>) -> Answer {
        let answer = self.answer(&call).await.unwrap_or_else(Answer::from);
        tracing::debug!(tool = &*self.spec.name, status = answer.status.as_str(), "script tool answered");
        answer
    }
}

/// Replaces NUL, which Postgres does not take in JSON.
fn without_nul(json: &mut Json) {
    match json {
        Json::String(text) if text.contains('\0') => *text = text.replace('\0', "\u{FFFD}"),
        Json::Array(items) => items.iter_mut().for_each(without_nul),
        Json::Object(map) => {
            let nul: BTreeSet<String> = map.keys().filter(|key| key.contains('\0')).cloned().collect();
            nul.iter().for_each(|key| drop(map.shift_remove(key)));
            map.values_mut().for_each(without_nul);
        }
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_has_a_few_spellings_and_python_is_meant_when_there_is_none() {
        let of = |language: Json| {
            let runtime: ToolRuntime =
                serde_json::from_value(json!({"script": "", "language": language})).expect("a runtime");
            Language::of(&runtime).map(|language| language == Language::Python)
        };
        assert_eq!(
            [of(json!(null)), of(json!("Python")), of(json!("js"))],
            [Some(true), Some(true), Some(false)]
        );
        assert_eq!(of(json!("ruby")), None);
    }

    #[test]
    fn a_script_that_reaches_nothing_is_pure_and_one_that_does_is_not_repeated() {
        let definition: ToolDefinition =
            serde_json::from_value(json!({"name": "t", "runtime": {"script": ""}})).expect("a definition");
        let runtime = definition.runtime.clone().expect("it has one");
        let effect = |config: ScriptConfig| {
            let spec = super::super::unusable::spec_of(&definition);
            Runners::new(&config).tool(&spec, &definition, &runtime).map(|tool| tool.effect())
        };
        let on = ScriptConfig { python: true, ..ScriptConfig::default() };
        assert_eq!(effect(ScriptConfig::default()), None, "Python is off unless somebody switches it on");
        assert_eq!(effect(on.clone()), Some(Effect::Pure));
        assert_eq!(effect(ScriptConfig { network: true, ..on.clone() }), Some(Effect::Irreversible));
        assert_eq!(effect(ScriptConfig { sandbox: Sandboxing::Limits, ..on }), Some(Effect::Irreversible));
    }

    #[test]
    fn nul_never_reaches_the_database() {
        let mut json = json!({"a\0": 1, "b": ["x\0y", {"c": "\0"}]});
        without_nul(&mut json);
        assert_eq!(json, json!({"b": ["x\u{FFFD}y", {"c": "\u{FFFD}"}]}));
    }
}
