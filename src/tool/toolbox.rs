//! From a tool's name to the tool.

use std::{sync::Arc, time::Duration};

use indexmap::IndexMap;

use super::{
    Error, McpConfig, ScriptConfig, SharedOffer, SharedTool, builtin,
    code::Runners,
    definition::{answerers, check_definition, effect_of},
    http::{
        AllowedHosts, HttpRequester, HttpTool, SearchConfig, SearchTwin, Searcher, WEB_SEARCH, WebSearch,
    },
    limits::{CallPolicy, Governed},
    mcp::Servers,
    memory::{self, Outside, Twin},
    nats::{AllowedSubjects, NatsConfig, NoBroker, Requester, SubjectTool, Subjects},
    unusable::{Unusable, spec_of},
};
use crate::{
    graph::{Effect, ToolDefinition, ToolRuntime},
    model::ToolSpec,
    secrets::{Asker, Secrets},
    telemetry::{Gate, Limited},
    value::Name,
};

/// The operator's word on tools.
#[derive(Clone, Debug)]
pub struct Config {
    /// `HTTP_TOOL_ALLOWED_HOSTS`: hosts that http tools may reach; none by default.
    pub allowed_hosts: AllowedHosts,
    /// `HTTP_TOOL_ALLOW_PRIVATE`: whether private addresses may be reached too; `false` by default.
    pub allow_private: bool,
    /// Secrets that headers may name. They go only to hosts that `allowed_hosts` names, never to those that only `*`
    /// allows.
    pub secrets: Secrets,
    /// `HTTP_TOOL_TIMEOUT_SECONDS`: most time of one request with its answer; a definition may lower it.
    pub max_timeout: Duration,
    /// `HTTP_TOOL_MAX_RESPONSE_BYTES`: most bytes read of an answer; a definition may lower it.
    pub max_response_bytes: u64,
    /// `TOOL_MAX_CONCURRENT`: requests at the same time in this process; others wait.
    pub max_concurrent: usize,
    /// Scripts.
    pub scripts: ScriptConfig,
    /// MCP servers.
    pub mcp: McpConfig,
    /// Tools that are subjects.
    pub nats: NatsConfig,
    /// The provider of `web_search`.
    pub search: SearchConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allowed_hosts: AllowedHosts::default(),
            allow_private: false,
            secrets: Secrets::default(),
            max_timeout: Duration::from_secs(60),
            max_response_bytes: 1 << 20,
            max_concurrent: 256,
            scripts: ScriptConfig::default(),
            mcp: McpConfig::default(),
            nats: NatsConfig::default(),
            search: SearchConfig::default(),
        }
    }
}

/// All tools of the process; one HTTP client serves them.
#[derive(Clone, Debug)]
pub struct Toolbox {
    reach: Reach,
    subjects: Subjects,
    /// In whose name its tools ask for secrets.
    asker: Asker,
}

/// What its tools reach.
#[derive(Clone, Debug)]
enum Reach {
    Real(Arc<Real>),
    Twin(Arc<Outside>),
}

/// Who carries out what tools do outside.
#[derive(Debug)]
struct Real {
    requester: Arc<HttpRequester>,
    servers: Servers,
    searcher: Searcher,
    scripts: Runners,
}

impl Toolbox {
    /// A toolbox under the operator's limits. Fails when the HTTP client cannot be made.
    pub fn new(config: Config) -> Result<Self, Error> {
        let scripts = Runners::new(&config.scripts);
        let (nats, search, mcp) = (config.nats.clone(), config.search.clone(), config.mcp.clone());
        let requester = Arc::new(HttpRequester::new(config)?);
        let subjects = Subjects { requester: Arc::new(NoBroker), config: nats, calls: requester.calls() };
        let searcher = Searcher::new(search, requester.calls())?;
        let servers = Servers::new(&mcp, &requester)?;
        let real = Real { requester, servers, searcher, scripts };
        Ok(Self { reach: Reach::Real(Arc::new(real)), subjects, asker: Asker::inline(&"".into()) })
    }

    /// The same, with a broker that carries the calls of NATS tools.
    pub fn with_broker(mut self, broker: Arc<dyn Requester>) -> Self {
        self.subjects.requester = broker;
        self
    }

    /// A toolbox whose HTTP and NATS tools reach nothing but `outside`.
    pub fn in_memory(outside: Arc<Outside>) -> Self {
        let limits = Config::default();
        let subjects = AllowedSubjects::new(vec![">".into()], Vec::new()).expect("it is a pattern");
        let subjects = Subjects {
            requester: outside.clone(),
            config: NatsConfig { subjects, ..limits.nats },
            calls: Gate::new(Limited::ToolCalls, limits.max_concurrent),
        };
        Self { reach: Reach::Twin(outside), subjects, asker: Asker::inline(&"".into()) }
    }

    /// The same toolbox, whose tools ask for secrets in the name of `asker`.
    pub fn in_name_of(&self, asker: Asker) -> Self {
        Self { asker, ..self.clone() }
    }

    /// The tool that `name` means: what the definition brings along, or else the built-in.
    ///
    /// A defined tool is compiled here, so keep what this returns for as long as the graph lives.
    /// `None` when nobody provides the name; `task` is the run's own and not found here, and tools of MCP servers
    /// are found by [`Toolbox::offer`].
    pub fn resolve(&self, name: &str, definitions: &IndexMap<Name, ToolDefinition>) -> Option<SharedTool> {
        let Some(definition) = definitions.get(name) else { return self.built_in(name) };
        if definition.mcp().is_some() {
            return None;
        }
        let spec = spec_of(definition);
        let mistakes = check_definition(definition);
        if !mistakes.is_empty() {
            // A bare mention of a built-in (name and description only) means the built-in.
            let bare = answerers(definition) == 0;
            return self
                .built_in(name)
                .filter(|_| bare)
                .or_else(|| Some(Arc::new(Unusable::mistaken(spec, mistakes))));
        }
        let policy = CallPolicy::of(definition);
        Some(Arc::new(Governed::new(self.defined(spec, definition)?, policy)))
    }

    /// The tool that needs no definition.
    fn built_in(&self, name: &str) -> Option<SharedTool> {
        if name != WEB_SEARCH {
            return builtin(name);
        }
        Some(match &self.reach {
            Reach::Real(real) => Arc::new(WebSearch::new(real.searcher.clone())),
            Reach::Twin(_) => Arc::new(SearchTwin::new()),
        })
    }

    /// The tool of a definition without mistakes.
    fn defined(&self, spec: ToolSpec, definition: &ToolDefinition) -> Option<SharedTool> {
        if let Some(runtime) = &definition.runtime {
            let tool = match &self.reach {
                Reach::Real(real) => real.scripts.tool(&spec, definition, runtime),
                Reach::Twin(_) => None,
            };
            return Some(match tool {
                Some(tool) => Arc::new(tool),
                None => Arc::new(Unusable::script(spec, runtime)),
            });
        }
        if let Some(nats) = &definition.nats {
            let effect = definition.effect.unwrap_or(Effect::Irreversible);
            return Some(Arc::new(SubjectTool::new(spec, effect, nats, self.subjects.clone())));
        }
        let http = definition.http.as_ref()?;
        let effect = effect_of(definition, http);
        let real = match &self.reach {
            Reach::Real(real) => real,
            Reach::Twin(outside) => return Some(Arc::new(Twin::new(spec, effect, http, outside.clone()))),
        };
        let sender = (real.requester.clone(), self.asker.clone());
        Some(match HttpTool::compile(spec.clone(), effect, http, sender) {
            Ok(tool) => Arc::new(tool),
            Err(mistakes) => Arc::new(Unusable::mistaken(spec, mistakes)),
        })
    }
}

impl Toolbox {
    /// The tools behind `name` that an MCP server lists: one that the definition brings along, or the operator's.
    /// `None` when the name stands for something else.
    pub fn offer(&self, name: &str, definitions: &IndexMap<Name, ToolDefinition>) -> Option<SharedOffer> {
        let definition = definitions.get(name);
        match &self.reach {
            Reach::Real(real) => real.servers.offer((name, definition), &self.asker),
            Reach::Twin(outside) => memory::offer(name, definition, outside),
        }
    }

    /// Whether it can be said which MCP servers there are: an operator who has configured none may do so elsewhere.
    pub fn knows_mcp_servers(&self) -> bool {
        match &self.reach {
            Reach::Real(real) => real.servers.has_any(),
            Reach::Twin(_) => false,
        }
    }

    /// Ends sessions with servers, and the programs that were started for them.
    pub async fn close(&self) {
        match &self.reach {
            Reach::Real(real) => real.servers.close().await,
            Reach::Twin(_) => {}
        }
    }

    /// The packages that a script needs and that are not installed; none when scripts of its language are not run here.
    pub async fn missing_packages(&self, runtime: &ToolRuntime) -> Result<Vec<String>, Error> {
        match &self.reach {
            Reach::Real(real) => real.scripts.missing(runtime).await,
            Reach::Twin(_) => Ok(Vec::new()),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use futures::executor::block_on;
    use serde_json::{Value as Json, json};

    use super::*;
    use crate::{
        ids::UnixNanos,
        tool::{Answer, Call},
        value::{Map, State, Value},
    };

    fn resolve(name: &str, definition: Json) -> Option<SharedTool> {
        let definition: ToolDefinition = serde_json::from_value(definition).expect("a definition");
        let definitions = IndexMap::from([(Name::from(definition.name.as_str()), definition)]);
        Toolbox::new(Config::default()).expect("a client").resolve(name, &definitions)
    }

    fn answer(tool: &SharedTool) -> Answer {
        let (args, state) = (Map::new(), State::new());
        block_on(tool.call(Call {
            id: "c",
            args: &args,
            state: &state,
            now: UnixNanos(0),
            idempotency_key: "k",
            limit: None,
        }))
    }

    #[test]
    fn a_definition_wins_over_the_builtin_of_its_name() {
        let http = json!({"url": "https://a.org/"});
        let defined =
            resolve("ls", json!({"name": "ls", "description": "mine", "http": http})).expect("defined");
        assert_eq!(defined.spec().description, "mine");
        let bare = resolve("ls", json!({"name": "ls", "description": "mine"})).expect("built in");
        assert_ne!(bare.spec().description, "mine");
        assert!(
            resolve("ls", json!({"name": "other", "http": http})).is_some(),
            "built-ins need no definition"
        );
        assert!(resolve("nope", json!({"name": "other", "http": http})).is_none());
        assert!(resolve("task", json!({"name": "other", "http": http})).is_none(), "task is the run's own");
    }

    #[test]
    fn the_method_of_a_request_says_what_a_call_does_unless_the_author_does() {
        let effect = |method: &str, declared: Option<&str>| {
            let http = json!({"url": "https://a.org/", "method": method});
            let mut definition = json!({"name": "t", "http": http});
            if let Some(declared) = declared {
                definition["effect"] = json!(declared);
            }
            resolve("t", definition).expect("defined").effect()
        };
        for method in ["GET", "HEAD", "get"] {
            assert_eq!(effect(method, None), Effect::Read, "{method}");
        }
        for method in ["PUT", "DELETE"] {
            assert_eq!(effect(method, None), Effect::Idempotent, "{method}");
        }
        for method in ["POST", "PATCH", "post"] {
            assert_eq!(effect(method, None), Effect::Irreversible, "{method}");
        }
        assert_eq!(effect("POST", Some("pure")), Effect::Pure);
        assert_eq!(effect("GET", Some("irreversible")), Effect::Irreversible);
        assert_eq!(resolve("ls", json!({"name": "x"})).expect("built in").effect(), Effect::Pure);
    }

    #[test]
    fn an_answer_comes_back_from_the_ledger_as_it_was() {
        let answer = Answer { writes: vec![("log".into(), Value::from("x"))], ..Answer::error("no") };
        assert_eq!(Answer::from_value(&answer.to_value()), Some(answer));
        assert_eq!(Answer::from_value(&Value::Null), None);
    }

    #[test]
    fn a_script_is_accepted_and_never_run() {
        let definition = json!({"name": "calc", "runtime": {"script": "import os"}});
        assert_eq!(check_definition(&serde_json::from_value(definition.clone()).expect("valid")), [""; 0]);
        let text = answer(&resolve("calc", definition).expect("defined"));
        expect!["TOOL_RUNTIME_MISSING: this tool is a python script and needs a python runtime host, which this executor does not have; the script was not run"].assert_eq(&text.content);
        let definition = json!({"name": "calc", "runtime": {"script": "1", "language": "ruby"}});
        assert!(
            answer(&resolve("calc", definition).expect("defined")).content.contains("a ruby runtime host")
        );
    }

    #[test]
    fn a_definition_with_mistakes_answers_with_all_of_them() {
        let definition = json!({"name": "web", "http": {"method": "X", "url": "a.org"}, "parameters": 1});
        let text = answer(&resolve("web", definition).expect("defined")).content;
        expect!["TOOL_DEFINITION: the definition of this tool has mistakes: method must be GET, HEAD, POST, PUT, PATCH or DELETE; url must start with http:// or https://, written out; parameters must be a JSON Schema, an object"].assert_eq(&text);
        for definition in [
            json!({"name": "web"}),
            json!({"name": "web", "parameters": {"type": 1}, "runtime": {"script": ""}}),
            json!({"name": "web", "runtime": {"script": ""}, "http": {"url": "http://a.org"}}),
        ] {
            assert!(
                answer(&resolve("web", definition).expect("defined"))
                    .content
                    .starts_with("TOOL_DEFINITION: ")
            );
        }
    }

    #[test]
    fn an_unknown_tool_is_answered_with_the_known_ones() {
        let error = Error::Unknown { name: "x".into(), known: vec!["ls".into(), "task".into()] };
        assert_eq!(
            Answer::from(error).content,
            "TOOL_UNKNOWN: there is no tool 'x'; the tools are: ls, task"
        );
    }
}
