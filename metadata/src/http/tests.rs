use std::time::Duration;

use super::*;
use crate::Document;

const TEXT: &str = r#"{"latest":{"meta-data":{"hostname":"h","a b":"c"},"user-data":"u"}}"#;

fn store(tokens: TokenUse) -> Store {
    Store::new(Document::parse(TEXT.as_bytes()).unwrap(), tokens)
}

/// Status and body.
fn ask(request: &str, store: &Store, tokens: &mut Tokens, now: Instant) -> (u16, String) {
    let request = Request::parse(request.as_bytes()).expect("the head is complete");
    let text = String::from_utf8(answer(request, store, tokens, now)).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    assert!(head.ends_with("Connection: close"), "{head}");
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn parts_are_given_as_text_or_json() {
    let (store, mut tokens, now) = (store(TokenUse::Optional), Tokens::default(), Instant::now());
    let mut get = |path: &str, headers: &str| {
        ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n"), &store, &mut tokens, now)
    };
    assert_eq!(get("/latest/meta-data/hostname", ""), (200, "h".into()));
    assert_eq!(get("/latest/meta-data/hostname?x=y", ""), (200, "h".into()));
    assert_eq!(get("/latest/meta-data/a%20b", ""), (200, "c".into()));
    assert_eq!(get("/latest/", ""), (200, "meta-data/\nuser-data".into()));
    assert_eq!(get("/", "Accept: text/html, Application/JSON;q=0.5\r\n"), (200, TEXT_SORTED.into()));
    assert_eq!(get("/latest/", "Accept: */*\r\n"), (200, "meta-data/\nuser-data".into()));
    assert_eq!(get("/latest/nothing", "").0, 404);
    for path in ["latest", "*", "http://169.254.169.254/latest/user-data", "/%", "/%4", "/%zz", "/%ff"] {
        assert_eq!(get(path, "").0, 400, "{path}");
    }
}

const TEXT_SORTED: &str = r#"{"latest":{"meta-data":{"a b":"c","hostname":"h"},"user-data":"u"}}"#;

#[test]
fn sessions_begin_with_a_token_and_end_with_it() {
    let mut tokens = Tokens::default();
    let now = Instant::now();
    let (open, closed) = (store(TokenUse::Optional), store(TokenUse::Required));
    for names in [
        ("X-aws-ec2-metadata-token", "X-aws-ec2-metadata-token-ttl-seconds"),
        ("x-metadata-token", "X-METADATA-TOKEN-TTL-SECONDS"),
    ] {
        let put = |ttl: &str, more: &str| {
            format!("PUT /latest/api/token HTTP/1.1\r\n{}: {ttl}\r\n{more}\r\n", names.1)
        };
        let (status, token) = ask(&put("60", "Content-Length: 0\r\n"), &closed, &mut tokens, now);
        assert_eq!(status, 200);
        let get = |token: &str| format!("GET /latest/user-data HTTP/1.1\r\n{}: {token}\r\n\r\n", names.0);
        for store in [&open, &closed] {
            assert_eq!(ask(&get(&token), store, &mut tokens, now), (200, "u".into()));
            assert_eq!(ask(&get("wrong"), store, &mut tokens, now).0, 401);
            assert_eq!(ask(&get(&token), store, &mut tokens, now + Duration::from_secs(60)).0, 401);
        }
        assert_eq!(ask("GET /latest/user-data HTTP/1.0\r\n\r\n", &closed, &mut tokens, now).0, 401);
        assert_eq!(ask("GET /latest/user-data HTTP/1.0\r\n\r\n", &open, &mut tokens, now).0, 200);
        for ttl in ["0", "21601", "-1", "", "x", "99999999999"] {
            assert_eq!(ask(&put(ttl, ""), &closed, &mut tokens, now).0, 400, "{ttl}");
        }
        assert_eq!(ask(&put("21600", ""), &closed, &mut tokens, now).0, 200);
        assert_eq!(ask(&put("60", "X-Forwarded-For: 10.0.0.1\r\n"), &closed, &mut tokens, now).0, 403);
    }
    assert_eq!(ask("PUT /latest/api/token HTTP/1.1\r\n\r\n", &closed, &mut tokens, now).0, 400);
}

#[test]
fn other_methods_and_what_is_no_http_are_refused() {
    let (store, mut tokens, now) = (store(TokenUse::Optional), Tokens::default(), Instant::now());
    for head in
        ["POST /latest/api/token", "PUT /latest/user-data", "DELETE /", "HEAD /", "CONNECT /", "get /"]
    {
        assert_eq!(ask(&format!("{head} HTTP/1.1\r\n\r\n"), &store, &mut tokens, now).0, 405, "{head}");
    }
    for head in [
        "\0",
        "GET\r\n\r\n",
        "GET / HTTP/2.0\r\n\r\n",
        "GET /  HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\n: x\r\n\r\n",
        "\x16\x03\x01\x02\0",
    ] {
        assert_eq!(ask(head, &store, &mut tokens, now).0, 400, "{head:?}");
    }
}

#[test]
fn a_head_may_come_in_pieces_and_is_bounded() {
    let head = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    for end in 0..head.len() {
        assert_eq!(Request::parse(&head.as_bytes()[..end]), None, "{end}");
    }
    assert!(Request::parse(head.as_bytes()).is_some());
    let of = |length: usize| format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(length - 23)).into_bytes();
    assert!(matches!(Request::parse(&of(MAX_HEAD)), Some(Ok(_))));
    assert_eq!(Request::parse(&of(MAX_HEAD + 1)), Some(Err(Status::HeadTooLarge)));
    assert_eq!(Request::parse(&of(MAX_HEAD)[..MAX_HEAD - 1]), None);
    let many = |count: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count)).into_bytes();
    assert!(matches!(Request::parse(&many(MAX_HEADERS)), Some(Ok(_))));
    assert_eq!(Request::parse(&many(MAX_HEADERS + 1)), Some(Err(Status::HeadTooLarge)));
}
