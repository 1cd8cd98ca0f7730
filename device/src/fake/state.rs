//! What tests of saved states share: states that somebody has tampered with, and states that earlier versions wrote.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::Node;

impl Node {
    /// The state as a value.
    ///
    /// # Panics
    /// It was made of something else than JSON.
    pub fn body(&self) -> Value {
        serde_json::from_str(self.body.get()).expect("a body is JSON")
    }

    /// Changes the state.
    ///
    /// # Panics
    /// As [`Node::body`].
    pub fn change(&mut self, change: impl FnOnce(&mut Value)) {
        let mut body = self.body();
        change(&mut body);
        self.body = serde_json::value::to_raw_value(&body).expect("a value can be written");
    }
}

impl PartialEq for Node {
    /// Whether both say the same, in whatever order.
    fn eq(&self, other: &Node) -> bool {
        (&self.kind, self.version, &self.parts) == (&other.kind, other.version, &other.parts)
            && self.body() == other.body()
    }
}

/// A state that was tampered with.
pub struct Tampered {
    /// What was done to it, and where.
    pub what: String,
    /// The node, as text may hold it; it need not even be one.
    pub text: Value,
    /// Whether no device may take it. Another number may be as good as the one that was there.
    pub impossible: bool,
}

impl Tampered {
    /// The node, if it is one.
    pub fn node(&self) -> Option<Node> {
        serde_json::from_value(self.text.clone()).ok()
    }
}

/// Everything that can be done to a state in one place: each field removed, one added to each object, each value replaced by those
/// of other types and by numbers at the limits, each list made shorter and longer.
pub fn tamper(node: &Node) -> Vec<Tampered> {
    let text = serde_json::to_value(node).expect("a node is plain data");
    let mut all = Vec::new();
    walk(&text, "", &mut |what, text, impossible| all.push(Tampered { what, text, impossible }));
    all
}

/// Reports each way in which `value` can be changed, as the whole that results.
fn walk(value: &Value, path: &str, report: &mut dyn FnMut(String, Value, bool)) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let mut without = fields.clone();
                without.remove(name);
                report(format!("{path}/{name} removed"), Value::Object(without), true);
                let whole = |field: Value| {
                    let mut fields: Map<String, Value> = fields.clone();
                    fields.insert(name.clone(), field);
                    Value::Object(fields)
                };
                walk(field, &format!("{path}/{name}"), &mut |what, field, impossible| {
                    report(what, whole(field), impossible);
                });
            }
            let mut with = fields.clone();
            with.insert("surplus".into(), json!(1));
            report(format!("{path}/surplus added"), Value::Object(with), true);
        }
        Value::Array(items) => {
            for (n, item) in items.iter().enumerate() {
                walk(item, &format!("{path}/{n}"), &mut |what, item, impossible| {
                    let mut items = items.clone();
                    items[n] = item;
                    report(what, Value::Array(items), impossible);
                });
            }
            if let Some((last, rest)) = items.split_last() {
                report(format!("{path} made shorter"), rest.into(), false);
                let longer = [items.as_slice(), &vec![last.clone(); 70_000]].concat();
                report(format!("{path} made longer"), Value::Array(longer), false);
            }
        }
        _ => {}
    }
    let others = [
        json!(null),
        json!(true),
        json!(-1),
        json!(0.5),
        json!("text"),
        json!([]),
        json!({}),
        json!(0),
        json!(1),
        json!(u64::from(u8::MAX)),
        json!(u64::from(u16::MAX) - 1),
        json!(u64::from(u16::MAX)),
        json!(u64::from(u16::MAX) + 1),
        json!(u64::from(u32::MAX)),
        json!(u64::from(u32::MAX) + 1),
        json!(u64::MAX - 1),
        json!(u64::MAX),
        json!(1u64 << 63),
    ];
    for other in others {
        // Where nothing is there could be something, and the other way round.
        let impossible = !value.is_null()
            && !other.is_null()
            && (std::mem::discriminant(value) != std::mem::discriminant(&other)
                || other.as_f64().is_some_and(|n| n < 0.0 || n.fract() != 0.0));
        if other != *value {
            report(format!("{path} replaced by {other}"), other, impossible);
        }
    }
}

/// The states of this kind that all versions so far have written, oldest first, from `tests/golden/state-v*/<name>.json` of the crate
/// at `root`; `present` is one that is written now. What was shipped loads for ever: no file is ever changed or removed.
///
/// # Panics
/// A version has no file. With `VIRGA_GOLDEN=write` in the environment that of the present version is written.
pub fn golden(root: &str, name: &str, present: &Node) -> Vec<Node> {
    let read = |version: u32| {
        let path = Path::new(root).join(format!("tests/golden/state-v{version}/{name}.json"));
        let text = std::fs::read_to_string(&path).or_else(|e| {
            let wanted = std::env::var_os("VIRGA_GOLDEN").is_some_and(|v| v == "write");
            if !wanted || version != present.version || path.exists() {
                return Err(e);
            }
            let value = serde_json::to_value(present).expect("a node is plain data");
            let mut text = serde_json::to_string_pretty(&value).expect("so is this");
            text.push('\n');
            std::fs::create_dir_all(path.parent().expect("a directory"))?;
            std::fs::write(&path, &text)?;
            Ok(text)
        });
        let text = text.unwrap_or_else(|e| {
            panic!(
                "{}: {e}; for a new version, run this test once with VIRGA_GOLDEN=write, look at the file and commit it",
                path.display()
            )
        });
        let node: Node = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(
            (node.kind.as_str(), node.version),
            (present.kind.as_str(), version),
            "{}",
            path.display()
        );
        node
    };
    (1..=present.version).map(read).collect()
}
