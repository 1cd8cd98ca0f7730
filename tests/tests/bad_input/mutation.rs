//! Changes to what is saved of a machine: everywhere, and at random by a seed.

use serde_json::{Map, Value, json};

use crate::saved::state_text;

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())].clone()
    }
}

/// Where a value is, from the outermost object on.
type Place = Vec<String>;

/// What is done to a value at a place.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    /// It is not there.
    Remove,
    /// It is there twice, once as something else: a member twice, an element once more.
    Twice,
    /// Nothing, a truth, a number, a text, a list or an object in its place.
    Type,
    /// A number at a limit.
    Extreme,
    /// One bit of a number.
    Bit,
    /// It trades places with one beside it.
    Trade,
    /// Very many of it.
    Many,
    /// Something more in an object.
    More,
}

const CHANGES: [Change; 8] = [
    Change::Remove,
    Change::Twice,
    Change::Type,
    Change::Extreme,
    Change::Bit,
    Change::Trade,
    Change::Many,
    Change::More,
];

/// Before the name of a member that is there already; taken off in the text.
const AGAIN: char = '\u{1}';

/// The text of a manifest in which something is different, and what.
pub(crate) struct Changed {
    pub(crate) text: String,
    pub(crate) what: Vec<String>,
}

/// Makes changed manifests out of a good one.
pub(crate) struct Changes {
    good: Value,
    random: Random,
    /// All that could be done, in no order.
    all: Vec<(Place, Change)>,
    done: usize,
}

impl Changes {
    pub(crate) fn new(good: &Value, seed: u64) -> Changes {
        let mut random = Random(seed);
        let mut places = Vec::new();
        list(&good["machine"], &mut vec!["machine".into()], &mut places);
        let mut all: Vec<_> =
            places.into_iter().flat_map(|place| CHANGES.map(|change| (place.clone(), change))).collect();
        for n in (1..all.len()).rev() {
            all.swap(n, random.below(n + 1));
        }
        Changes { good: good.clone(), random, all, done: 0 }
    }

    /// How many single changes there are.
    pub(crate) fn count(&self) -> usize {
        self.all.len()
    }

    /// The next: in turn one of the single changes, all of which come before any comes again, and some at once, at places that are found
    /// from the top, so that short lists count as much as long ones.
    pub(crate) fn next(&mut self) -> Changed {
        let mut state = self.good.clone();
        let mut what = Vec::new();
        self.done += 1;
        if self.done.is_multiple_of(2) {
            let (place, change) = self.all[self.done / 2 % self.all.len()].clone();
            what.extend(self.change(&mut state, &place, change));
        }
        let more = if what.is_empty() { 1 + self.random.below(3) } else { 0 };
        for _ in 0..more {
            let place = self.pick();
            let change = self.random.of(&CHANGES);
            what.extend(self.change(&mut state, &place, change));
        }
        let text = state_text(&state).replace(&format!("\"\\u{:04x}", u32::from(AGAIN)), "\"");
        Changed { text, what }
    }

    /// A place, found from the top.
    fn pick(&mut self) -> Place {
        let mut place: Place = vec!["machine".into()];
        loop {
            let inner = keys(at(&mut self.good.clone(), &place).expect("the good one has it"));
            if inner.is_empty() || place.len() > 1 && self.random.below(8) == 0 {
                return place;
            }
            place.push(self.random.of(&inner));
        }
    }

    /// Does one thing, and says what; nothing if it cannot be done there.
    fn change(&mut self, state: &mut Value, place: &[String], change: Change) -> Option<String> {
        let other = at(&mut self.good.clone(), &self.pick()).cloned().unwrap_or_default();
        let random = &mut self.random;
        let (key, outer) = place.split_last()?;
        let outer = at(state, outer)?;
        let found = inner(outer, key)?;
        match change {
            Change::Type => *found = if random.below(4) == 0 { other } else { random.of(&others()) },
            Change::Extreme if found.is_number() => *found = random.of(&extremes()),
            Change::Bit if found.is_u64() => {
                *found = (found.as_u64()? ^ 1 << random.below(64)).into();
            }
            Change::Bit if found.is_boolean() => *found = (!found.as_bool()?).into(),
            Change::Bit if found.as_str().is_some_and(|text| !text.is_empty()) => {
                let mut text: Vec<char> = found.as_str()?.chars().collect();
                let at = random.below(text.len());
                text[at] = random.of(&['0', 'f', 'g', '\0', '"', 'ä']);
                *found = text.into_iter().collect::<String>().into();
            }
            Change::More if found.is_object() => {
                let name = random.of(&["smell", "parts", "state", "function", "body"]);
                found.as_object_mut()?.entry(name).or_insert(other);
            }
            Change::Remove | Change::Twice | Change::Trade | Change::Many => {
                return arrange(outer, key, change, random)
                    .then(|| format!("{change:?} {}", place.join("/")));
            }
            _ => return None,
        }
        let mut now = found.to_string();
        now.truncate(now.floor_char_boundary(60));
        Some(format!("{change:?} {}: {now}", place.join("/")))
    }
}

/// Changes what a list or an object consists of, at `key`; whether that is possible.
fn arrange(outer: &mut Value, key: &str, change: Change, random: &mut Random) -> bool {
    match outer {
        Value::Object(members) => arrange_members(members, key, change, random),
        Value::Array(list) => {
            let at = key.parse::<usize>().expect("a place in a list is a number");
            match change {
                Change::Remove => drop(list.remove(at)),
                Change::Twice => list.insert(at, list[at].clone()),
                Change::Trade => {
                    let other = random.below(list.len());
                    list.swap(at, other);
                }
                Change::Many => {
                    let many = random.of(&[10, 300, 3000]);
                    list.extend(vec![list[at].clone(); many]);
                }
                _ => return false,
            }
            true
        }
        _ => false,
    }
}

fn arrange_members(members: &mut Map<String, Value>, key: &str, change: Change, random: &mut Random) -> bool {
    let Some(value) = members.get(key).cloned() else { return false };
    match change {
        Change::Remove => drop(members.remove(key)),
        Change::Twice => {
            let second = if random.below(2) == 0 { value } else { random.of(&others()) };
            members.insert(format!("{AGAIN}{key}"), second);
        }
        Change::Trade => {
            let other = random.of(&members.keys().cloned().collect::<Vec<_>>());
            let theirs = members.insert(other.clone(), value).unwrap_or_default();
            members.insert(key.to_owned(), theirs);
        }
        Change::Many => {
            for n in 0..random.of(&[10, 300]) {
                members.insert(format!("{key}{n}"), value.clone());
            }
        }
        _ => return false,
    }
    true
}

/// Values of other types.
fn others() -> Vec<Value> {
    let deep = (0..100).fold(Value::Null, |inner, _| json!([inner]));
    vec![
        Value::Null,
        true.into(),
        0.into(),
        (-1).into(),
        0.5.into(),
        "".into(),
        "x".repeat(5000).into(),
        json!([]),
        json!({}),
        json!([0, 0]),
        deep,
    ]
}

/// Numbers at limits.
fn extremes() -> Vec<Value> {
    let unsigned =
        [0, 1, 31, 32, 255, 256, 0xffff, 0x1_0000, 0xffff_ffff, 1 << 32, 1 << 52, 1 << 63, u64::MAX];
    let signed = [-1, i64::from(i32::MIN), i64::MIN];
    let real = [0.5, -0.0, 1e308, 1.8446744073709552e19];
    let all = unsigned.map(Value::from).into_iter().chain(signed.map(Value::from));
    all.chain(real.map(Value::from)).collect()
}

fn keys(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => members.keys().cloned().collect(),
        Value::Array(list) => (0..list.len()).map(|n| n.to_string()).collect(),
        _ => Vec::new(),
    }
}

fn inner<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match value {
        Value::Object(members) => members.get_mut(key),
        Value::Array(list) => list.get_mut(key.parse::<usize>().ok()?),
        _ => None,
    }
}

fn at<'a>(value: &'a mut Value, place: &[String]) -> Option<&'a mut Value> {
    place.iter().try_fold(value, |value, key| inner(value, key))
}

fn list(value: &Value, place: &mut Place, all: &mut Vec<Place>) {
    all.push(place.clone());
    for key in keys(value) {
        let inner = match value {
            Value::Array(list) => key.parse::<usize>().ok().map(|n| &list[n]),
            _ => value.get(&key),
        };
        place.push(key);
        list(inner.unwrap_or(&Value::Null), place, all);
        place.pop();
    }
}
