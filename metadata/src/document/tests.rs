use serde_json::json;

use super::*;

fn document(value: Value) -> Document {
    Document::parse(value.to_string().as_bytes()).unwrap()
}

#[test]
fn a_path_leads_to_a_text_a_listing_or_nothing() {
    let d = document(json!({"latest": {
        "meta-data": {
            "hostname": "h", "n": 7, "on": true, "none": null, "list": ["a", 1], "deep": [[1]],
            "net": {"a": {}}, "public-keys": {"0=mine": {"openssh-key": "ssh-x"}},
        },
        "user-data": "#!/bin/sh\n",
    }}));
    let text = |path: &str| d.find(path).map(|found| found.text());
    for (path, expected) in [
        ("/", "latest/"),
        ("/latest", "meta-data/\nuser-data"),
        ("//latest//meta-data/hostname//", "h"),
        ("/latest/user-data", "#!/bin/sh\n"),
        ("/latest/meta-data/n", "7"),
        ("/latest/meta-data/on", "true"),
        ("/latest/meta-data/none", ""),
        ("/latest/meta-data/list", "a\n1"),
        ("/latest/meta-data/deep", "[[1]]"),
        ("/latest/meta-data/net/", "a/"),
        ("/latest/meta-data/net/a", ""),
        ("/latest/meta-data/public-keys/", "0=mine"),
        ("/latest/meta-data/public-keys/0/", "openssh-key"),
        ("/latest/meta-data/public-keys/0/openssh-key", "ssh-x"),
        ("/2021-03-23/meta-data/hostname", "h"),
        ("/1.0/meta-data/hostname", "h"),
    ] {
        assert_eq!(text(path).as_deref(), Some(expected), "{path}");
    }
    for path in [
        "/meta-data",
        "/latest/x",
        "/latest/meta-data/hostname/x",
        "/latest/meta-data/public-keys/1",
        "/latest/meta-data/public-keys/0=",
        "/latest/meta-data/list/0",
        "/2021-03-2/meta-data",
        "/20210-3-23/meta-data",
    ] {
        assert_eq!(text(path), None, "{path}");
    }
    assert_eq!(d.find("/latest/meta-data/net").unwrap().json(), r#"{"a":{}}"#);
    assert_eq!(d.find("/latest/meta-data/hostname").unwrap().json(), r#""h""#);
}

#[test]
fn a_version_stands_for_the_whole_where_the_document_has_none() {
    let d = document(json!({"meta-data": {"hostname": "h"}, "2009-04-04": {"x": "old"}}));
    assert_eq!(d.find("/latest/meta-data/hostname").unwrap().text(), "h");
    assert_eq!(d.find("/2016-09-02/").unwrap().text(), "2009-04-04/\nmeta-data/");
    assert_eq!(d.find("/2009-04-04/x").unwrap().text(), "old");
    assert!(d.find("/2009-04-04/meta-data").is_none());
}

/// The examples of RFC 7396, appendix A, that are about objects.
#[test]
fn patches_are_merged_as_the_rfc_says() {
    for (before, patch, after) in [
        (json!({"a": "b"}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "b"}), json!({"b": "c"}), json!({"a": "b", "b": "c"})),
        (json!({"a": "b"}), json!({"a": null}), json!({})),
        (json!({"a": "b", "b": "c"}), json!({"a": null}), json!({"b": "c"})),
        (json!({"a": ["b"]}), json!({"a": "c"}), json!({"a": "c"})),
        (json!({"a": "c"}), json!({"a": ["b"]}), json!({"a": ["b"]})),
        (json!({"a": {"b": "c"}}), json!({"a": {"b": "d", "c": null}}), json!({"a": {"b": "d"}})),
        (json!({"a": [{"b": "c"}]}), json!({"a": [1]}), json!({"a": [1]})),
        (json!({"e": null}), json!({"a": 1}), json!({"e": null, "a": 1})),
        (json!({}), json!({"a": {"bb": {"ccc": null}}}), json!({"a": {"bb": {}}})),
    ] {
        let patch = Patch::parse(patch.to_string().as_bytes()).unwrap();
        assert_eq!(document(before).patched(&patch).unwrap(), document(after));
    }
}

#[test]
fn the_limit_holds_for_documents_and_patches() {
    // {"a":"…"} has eight bytes around the text.
    let of = |length: usize| format!(r#"{{"a":"{}"}}"#, "x".repeat(length - 8)).into_bytes();
    let full = Document::parse(&of(MAX_DOCUMENT)).unwrap();
    assert_eq!(full.to_json().len(), MAX_DOCUMENT);
    assert!(
        matches!(Document::parse(&of(MAX_DOCUMENT + 1)), Err(DocumentError::TooLarge(n)) if n == MAX_DOCUMENT + 1)
    );
    let patch = |text: &str| Patch::parse(text.as_bytes()).unwrap();
    assert!(matches!(full.patched(&patch(r#"{"b":1}"#)), Err(DocumentError::TooLarge(_))));
    assert!(full.patched(&patch(r#"{"a":null,"b":1}"#)).is_ok());
}

#[test]
fn what_is_no_object_is_refused_and_nothing_is_shown() {
    for text in ["", "1", "[]", "null", "\"a\"", "{", "{}x", &"[".repeat(100_000)] {
        assert!(matches!(Document::parse(text.as_bytes()), Err(DocumentError::Json(_))), "{text:.20}");
        assert!(Patch::parse(text.as_bytes()).is_err(), "{text:.20}");
    }
    let secret = document(json!({"a": "secret"}));
    assert_eq!(format!("{secret:?}"), "Document(14 bytes)");
    assert_eq!(format!("{:?}", Patch::parse(b"{\"a\":\"secret\"}").unwrap()), "Patch");
}
