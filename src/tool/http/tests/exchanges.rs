use super::*;

/// The JSON of a page of numbers, three in all.
fn numbers(request: &str) -> Vec<u8> {
    let page: u32 = (1..=3).find(|page| request.contains(&format!("page={page} "))).unwrap_or(1);
    let next = (page < 3).then(|| format!("/numbers?page={}", page + 1));
    let body = json!({"data": [page], "next": next}).to_string();
    reply("200 OK", "content-type: application/json\r\n", body.as_bytes())
}

#[tokio::test]
async fn pages_are_followed_with_the_same_headers_and_joined() {
    let mut server = serve(numbers, Then::Close).await;
    let http = json!({"url": format!("http://127.0.0.1:{}/numbers", server.port), "headers": {"X-Key": "{{ secrets.KEY }}"},
        "pagination": {"next_path": "next", "items_path": "data"}});
    assert_eq!(call(local(), http, json!({})).await, Answer::success("[1,2,3]"));
    for page in ["GET /numbers HTTP", "GET /numbers?page=2 HTTP", "GET /numbers?page=3 HTTP"] {
        let request = server.requests.recv().await.expect("a request");
        assert!(request.starts_with(page) && request.contains("x-key: hunter2"), "{page}: {request}");
    }
}

#[tokio::test]
async fn pages_of_the_link_header_end_at_the_limit_of_one_answer() {
    let link = format!("{TEXT}link: </2>; rel=\"next\"\r\n");
    let server = serve(
        move |request| {
            let headers = if request.starts_with("GET /2 ") { TEXT } else { &link };
            reply("200 OK", headers, b"0123456789")
        },
        Then::Close,
    )
    .await;
    let http = |limit: u64| {
        json!({"url": format!("http://127.0.0.1:{}/1", server.port), "max_response_bytes": limit,
            "pagination": {"link_header": true}})
    };
    assert_eq!(call(local(), http(20), json!({})).await, Answer::success("0123456789\n0123456789"));
    let cut = call(local(), http(14), json!({})).await;
    assert_eq!(cut.content, "0123456789\n0123\n[cut: the pages are larger than 14 bytes]");
}

#[tokio::test]
async fn all_pages_together_have_the_time_of_one_call() {
    let server = serve(
        |request| match request.contains("page=2") {
            true => Vec::new(),
            false => numbers(request),
        },
        Then::Stall,
    )
    .await;
    let http = json!({"url": format!("http://127.0.0.1:{}/numbers", server.port), "timeout_seconds": 0.5,
        "pagination": {"next_path": "next"}});
    let answer = call(local(), http, json!({})).await;
    assert_eq!(error(&answer), "TOOL_TIMEOUT: no complete answer within 0.5 seconds");
}

/// A server that gives out `token-1`, `token-2`, … and takes the newest of those it was told to take.
async fn guarded(refused: &'static [&'static str]) -> Server {
    let given = std::sync::atomic::AtomicUsize::new(0);
    let json = "content-type: application/json\r\n";
    serve(
        move |request| {
            if request.starts_with("POST /token") {
                let number = given.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
                let body = json!({"access_token": format!("token-{number}"), "token_type": "bearer", "expires_in": 3600});
                return reply("200 OK", json, body.to_string().as_bytes());
            }
            let is_refused = refused.iter().any(|token| request.contains(token));
            reply(if is_refused { "401 Unauthorized" } else { "200 OK" }, TEXT, request.as_bytes())
        },
        Then::Close,
    )
    .await
}

fn with_login(port: u16, more: Json) -> Json {
    let mut auth = json!({"type": "oauth2_client_credentials", "token_url": format!("http://127.0.0.1:{port}/token"),
        "client_id": "me:too", "client_secret": "{{ secrets.KEY }}", "scope": "read write"});
    more.as_object().into_iter().flatten().for_each(|(name, value)| auth[name] = value.clone());
    json!({"method": "POST", "url": format!("http://127.0.0.1:{port}/data"), "auth": auth})
}

#[tokio::test]
async fn a_token_is_asked_for_once_and_never_comes_back() {
    let mut server = guarded(&[]).await;
    let toolbox = Toolbox::new(local()).expect("a client");
    for _ in 0..2 {
        let answer = call_in(&toolbox, with_login(server.port, json!({})), json!({})).await;
        assert!(answer.content.contains("authorization: Bearer ***REDACTED***"), "{}", answer.content);
    }
    let asked = server.requests.recv().await.expect("a request");
    assert!(asked.starts_with("POST /token HTTP/1.1\r\n"), "{asked}");
    // me%3Atoo:hunter2
    assert!(asked.contains("\r\nauthorization: Basic bWUlM0F0b286aHVudGVyMg==\r\n"), "{asked}");
    assert!(asked.ends_with("\r\n\r\ngrant_type=client_credentials&scope=read+write"), "{asked}");
    for _ in 0..2 {
        let called = server.requests.recv().await.expect("a request");
        assert!(called.starts_with("POST /data") && called.contains("Bearer token-1\r\n"), "{called}");
    }
    assert!(server.requests.try_recv().is_err(), "the token was kept");
}

#[tokio::test]
async fn a_kept_token_that_is_taken_no_more_is_replaced_once() {
    let mut server = guarded(&["Bearer token-1"]).await;
    let toolbox = Toolbox::new(local()).expect("a client");
    let http = || with_login(server.port, json!({"client_auth": "body", "audience": "api"}));
    let first = call_in(&toolbox, http(), json!({})).await;
    assert!(error(&first).starts_with("TOOL_FAILED: the server answered 401"), "{}", first.content);
    let second = call_in(&toolbox, http(), json!({})).await;
    assert_eq!(second.status, ToolStatus::Success, "{second:?}");
    let mut lines = Vec::new();
    while let Ok(request) = server.requests.try_recv() {
        lines.push(request.lines().next().unwrap_or_default().to_owned());
        if request.starts_with("POST /token") {
            assert!(request.ends_with("&audience=api&client_id=me%3Atoo&client_secret=hunter2"), "{request}");
        }
    }
    let expected =
        ["/token", "/data", "/data", "/token", "/data"].map(|path| format!("POST {path} HTTP/1.1"));
    assert_eq!(lines, expected);
}

#[tokio::test]
async fn a_token_that_cannot_be_had_is_an_error_of_its_own_and_nothing_is_sent() {
    let body = json!({"error": "invalid_client", "error_description": "wrong secret hunter2"});
    let mut server = serve_json("401 Unauthorized", &body).await;
    let answer = call(local(), with_login(server.port, json!({})), json!({})).await;
    assert_eq!(
        error(&answer),
        "TOOL_AUTHORIZATION: the token for this request could not be got: the server answered 401 Unauthorized: \
         invalid_client: wrong secret ***REDACTED***"
    );
    assert_eq!(answer.outcome, CallOutcome::NotMade);
    assert!(server.requests.recv().await.expect("a request").starts_with("POST /token"));
    assert!(server.requests.try_recv().is_err());
    let elsewhere = json!({"token_url": "http://login.example.com/token"});
    let answer = call(local(), with_login(server.port, elsewhere), json!({})).await;
    assert!(error(&answer).starts_with("TOOL_HOST_NOT_ALLOWED: the host 'login.example.com'"));
    let config = Config { allowed_hosts: AllowedHosts::parse("*").expect("hosts"), ..local() };
    let answer = call(config, with_login(server.port, json!({})), json!({})).await;
    assert!(error(&answer).starts_with("TOOL_SECRET: secrets are only sent to hosts"), "{}", answer.content);
}

#[test]
fn a_login_that_makes_no_sense_is_a_mistake() {
    let mistakes = |http: Json| check_http(&serde_json::from_value(http).expect("a definition"));
    assert_eq!(mistakes(with_login(1, json!({}))), [""; 0]);
    for more in [
        json!({"token_url": "ftp://a.org/"}),
        json!({"token_url": "https://u:p@a.org/"}),
        json!({"client_secret": "hunter2"}),
        json!({"client_secret": {"secret": "../KEY"}}),
        json!({"client_secret": "x{{ secrets.KEY }}"}),
    ] {
        assert_eq!(mistakes(with_login(1, more.clone())).len(), 1, "{more}");
    }
    let mut twice = with_login(1, json!({}));
    twice["headers"] = json!({"authorization": "x"});
    assert_eq!(mistakes(twice), ["auth sets the header 'Authorization'; leave it out of headers"]);
}
