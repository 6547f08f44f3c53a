//! What counts as the same question, and what is kept of its answers.

use async_trait::async_trait;

use super::*;
use crate::{
    graph::{AnswerCaching, ModelSettings},
    model::ToolSpec,
    stream::{Away, MemoryShelf},
    value::{Content, InvalidToolCall, Map},
};

fn request() -> Request {
    let mut settings = ModelSettings::parse("openai:gpt-4o");
    settings.cache = Some(AnswerCaching { ttl_seconds: 600 });
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
    Request {
        settings: Arc::new(settings),
        system_prompt: Some("Be brief.".into()),
        messages: vec![Arc::new(Message::new("m1", Role::Human, "Where to?"))],
        tools: vec![ToolSpec {
            name: "look".into(),
            description: "looks".into(),
            parameters: parameters.into(),
        }],
        output_schema: None,
        retry: 0,
    }
}

fn reply() -> Reply {
    let args = Map::from_iter([("city".into(), "Oslo".into()), ("days".into(), 2.into())]);
    Reply {
        text: "To Oslo — \u{1f600}".into(),
        blocks: vec![Value::map([("type", Value::from("thinking")), ("signature", Value::from("s="))])],
        tool_calls: vec![ToolCall { id: "c1".into(), name: "look".into(), args }],
        usage: Some(Usage { input_tokens: 7, output_tokens: 3, total_tokens: 10, ..Usage::default() }),
        finish_reason: Some("tool_calls".into()),
        model: Some("gpt-4o-2024-08-06".into()),
        ..Reply::default()
    }
}

fn cache() -> AnswerCache {
    AnswerCache::new(CacheConfig::default(), Arc::new(MemoryShelf::default()))
}

fn changed(change: impl FnOnce(&mut Request, &mut ModelSettings)) -> Request {
    let mut request = request();
    let mut settings = ModelSettings::clone(&request.settings);
    change(&mut request, &mut settings);
    request.settings = Arc::new(settings);
    request
}

#[tokio::test(start_paused = true)]
async fn the_same_question_gets_the_same_answer_until_its_time_is_over() {
    let cache = cache();
    assert_eq!(cache.find(&request()).await, None);
    cache.keep(&request(), &reply()).await;
    assert_eq!(cache.find(&request()).await, Some(reply()));
    tokio::time::advance(Duration::from_secs(601)).await;
    assert_eq!(cache.find(&request()).await, None);
}

#[tokio::test(start_paused = true)]
async fn the_operator_may_allow_less_time() {
    let config = CacheConfig { max_ttl: Duration::from_secs(10), ..CacheConfig::default() };
    let cache = AnswerCache::new(config, Arc::new(MemoryShelf::default()));
    cache.keep(&request(), &reply()).await;
    assert_eq!(cache.find(&request()).await, Some(reply()));
    tokio::time::advance(Duration::from_secs(11)).await;
    assert_eq!(cache.find(&request()).await, None);
}

#[test]
fn what_a_provider_does_not_see_makes_no_other_question() {
    let cache = cache();
    let same = changed(|request, settings| {
        request.retry = 3;
        request.messages = vec![Arc::new(Message::new("m2", Role::Human, "Where to?"))];
        let parameters = json!({"properties": {"city": {"type": "string"}}, "type": "object"});
        request.tools[0].parameters = parameters.into();
        settings.cache = Some(AnswerCaching { ttl_seconds: 5 });
        settings.fallbacks = vec![ModelSettings::parse("openai:gpt-4o-mini")];
    });
    assert_eq!(cache.key(&same), cache.key(&request()));
}

#[test]
fn whatever_a_provider_sees_makes_another_question() {
    let cache = cache();
    let say = |role| vec![Arc::new(Message::new("m1", role, "Where to?"))];
    let ai = |tool_calls| Role::Ai { tool_calls, invalid_tool_calls: Vec::new(), usage: None };
    let blocks = |text: &str| {
        let block = Value::map([("type", Value::from("text")), ("text", Value::from(text))]);
        let content = Content::Blocks(Arc::new(vec![block]));
        vec![Arc::new(Message { content, ..Message::new("m1", Role::Human, "") })]
    };
    let others = [
        changed(|_, settings| settings.provider = "azure".into()),
        changed(|_, settings| settings.model = "gpt-4o-mini".into()),
        changed(|_, settings| settings.temperature = Some(0.5)),
        changed(|_, settings| settings.max_tokens = Some(5)),
        changed(|_, settings| settings.stop = Some(vec!["END".into()])),
        changed(|_, settings| settings.base_url = Some("https://example.com".into())),
        changed(|request, _| request.system_prompt = None),
        changed(|request, _| request.messages = say(Role::System)),
        changed(|request, _| request.messages = say(ai(Vec::new()))),
        changed(|request, _| request.messages = say(ai(reply().tool_calls))),
        changed(|request, _| request.messages = blocks("Where to?")),
        changed(|request, _| request.tools.clear()),
        changed(|request, _| request.tools[0].description = "sees".into()),
        changed(|request, _| request.output_schema = Some(json!({"type": "string"}).into())),
        request(),
    ];
    let mut keys: Vec<String> = others.iter().map(|request| cache.key(request)).collect();
    let elsewhere = CacheConfig { namespace: "other".into(), ..CacheConfig::default() };
    keys.push(AnswerCache::new(elsewhere, Arc::new(MemoryShelf::default())).key(&request()));
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), others.len() + 1);
}

#[tokio::test]
async fn only_whole_answers_are_kept_and_only_when_asked_for() {
    let invalid = InvalidToolCall { id: "c".into(), name: "f".into(), args: "{".into(), error: "e".into() };
    let wanted = changed(|request, _| request.output_schema = Some(json!({"type": "integer"}).into()));
    let said = |text: &str| Reply { text: text.into(), ..Reply::default() };
    let asked = request().settings;
    for (request, reply) in [
        (changed(|_, settings| settings.cache = None), reply()),
        (request(), Reply { refusal: Some("no".into()), ..reply() }),
        (request(), Reply { finish_reason: Some("length".into()), ..reply() }),
        (request(), Reply { invalid_tool_calls: vec![invalid], ..reply() }),
        (request(), Reply::default()),
        (wanted.clone(), said("seven")),
        (wanted.clone(), said("7.5")),
    ] {
        let cache = cache();
        cache.keep(&request, &reply).await;
        let asked = Request { settings: asked.clone(), ..request };
        assert_eq!(cache.find(&asked).await, None, "{reply:?}");
    }
    let cache = cache();
    cache.keep(&wanted, &said("7")).await;
    assert_eq!(cache.find(&wanted).await, Some(said("7")));
    let small = CacheConfig { max_bytes: 20, ..CacheConfig::default() };
    let cache = AnswerCache::new(small, Arc::new(MemoryShelf::default()));
    cache.keep(&request(), &reply()).await;
    assert_eq!(cache.find(&request()).await, None, "it is too large");
}

#[tokio::test]
async fn what_is_no_answer_is_a_miss() {
    let shelf = Arc::new(MemoryShelf::default());
    let cache = AnswerCache::new(CacheConfig::default(), shelf.clone());
    let zeros = std::io::repeat(b' ').take(MAX_PLAIN_BYTES + 1);
    let mut bomb = Vec::new();
    flate2::read::DeflateEncoder::new(zeros, Compression::fast()).read_to_end(&mut bomb).expect("memory");
    assert!(bomb.len() < CacheConfig::default().max_bytes, "{} bytes", bomb.len());
    for wrong in [b"garbage".to_vec(), bomb, packed(&reply())[1..].to_vec()] {
        shelf.put(&cache.key(&request()), wrong, Duration::from_secs(60)).await.expect("memory");
        assert_eq!(cache.find(&request()).await, None);
    }
}

struct Gone;

#[async_trait]
impl Shelf for Gone {
    async fn get(&self, _: &str, _: usize) -> Result<Option<Vec<u8>>, Away> {
        Err(Away("no connection".into()))
    }

    async fn put(&self, _: &str, _: Vec<u8>, _: Duration) -> Result<(), Away> {
        Err(Away("no connection".into()))
    }
}

#[tokio::test]
async fn a_shelf_that_is_away_is_a_miss() {
    let cache = AnswerCache::new(CacheConfig::default(), Arc::new(Gone));
    cache.keep(&request(), &reply()).await;
    assert_eq!(cache.find(&request()).await, None);
}
