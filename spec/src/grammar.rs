//! Splitting `key=value,key=[a,b],flag` into pieces (contract `cli.md` §1).
//!
//! A comma separates unless it stands inside `"…"` or `[…]`; the first `=` of a piece ends its key; the last of a repeated key
//! wins; a key nobody knows is refused. Converting the pieces is [`crate::value`]'s.

use thiserror::Error;

use crate::refusal::Kind;

/// Why an option text was refused. The texts are those that existing tools match on.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ParseError {
    /// A bracket or quote that does not close, or a key that needs a value and has none.
    #[error("Invalid syntax: {0}")]
    Syntax(String),
    /// A key that the flag does not have.
    #[error("Unknown option: {0}")]
    UnknownKey(String),
    /// A value that is not of the key's type.
    #[error("Unable to convert {value} for {key}")]
    Convert {
        /// The key.
        key: String,
        /// The value as written.
        value: String,
        /// What the key takes.
        #[source]
        hint: Hint,
    },
    /// A key of the contract that this version does not offer.
    #[error("{0} is not supported yet")]
    Unsupported(String),
    /// Anything else, in full.
    #[error("{0}")]
    Other(String),
}

impl ParseError {
    /// The kind of refusal this is.
    pub fn kind(&self) -> Kind {
        match self {
            ParseError::Unsupported(_) => Kind::Unsupported,
            _ => Kind::Invalid,
        }
    }
}

/// What a key takes, as the cause of a failed conversion.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct Hint(pub String);

/// One key of a flag, as the parser, `--help` and the manual page see it.
#[derive(Clone, Debug)]
pub struct Key {
    /// The name before the `=`.
    pub name: &'static str,
    /// The value's syntax such as `<path>`; empty for a key without a value.
    pub syntax: &'static str,
    /// The default as text; empty if there is none.
    pub default: String,
    /// One line of help; empty for keys that are refused.
    pub help: &'static str,
    /// Whether the key stands alone, without `=value`.
    pub bare: bool,
    /// The properties in JSON that the key sets; none for keys that are refused.
    pub fields: &'static [&'static str],
}

/// The pieces of one option text.
#[derive(Debug, Default)]
pub struct Options {
    given: Vec<(String, Option<String>)>,
}

impl Options {
    /// Splits `text` and checks the keys against `known`.
    ///
    /// # Errors
    /// Unbalanced quotes or brackets, an unknown key, a key without its value.
    pub fn parse(text: &str, known: &[Key]) -> Result<Self, ParseError> {
        let text = text.trim();
        let mut options = Options::default();
        if text.is_empty() {
            return Ok(options);
        }
        for piece in split(text)? {
            let (key, value) = match piece.split_once('=') {
                Some((key, value)) => (key, Some(value.trim())),
                None => (piece, None),
            };
            let known =
                known.iter().find(|k| k.name == key).ok_or_else(|| ParseError::UnknownKey(key.to_owned()))?;
            if value.is_none() && !known.bare {
                return Err(ParseError::Syntax(piece.to_owned()));
            }
            options.given.retain(|(k, _)| k != key);
            options.given.push((key.to_owned(), value.map(str::to_owned)));
        }
        Ok(options)
    }

    /// Whether the key was written, with or without a value.
    pub fn is_set(&self, key: &str) -> bool {
        self.given.iter().any(|(k, _)| k == key)
    }

    /// The key's value as written; `None` when absent or empty (`key=` counts as not given).
    pub fn raw(&self, key: &str) -> Option<&str> {
        self.given.iter().find(|(k, _)| k == key).and_then(|(_, v)| v.as_deref()).filter(|v| !v.is_empty())
    }
}

/// Splits at commas that stand outside quotes and brackets.
///
/// # Errors
/// [`ParseError::Syntax`] with the whole text if a quote or bracket does not close.
pub fn split(text: &str) -> Result<Vec<&str>, ParseError> {
    let mut pieces = Vec::new();
    let (mut start, mut depth, mut quoted) = (0, 0u32, false);
    let unbalanced = || ParseError::Syntax(text.to_owned());
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(unbalanced)?,
            ',' if depth == 0 => {
                pieces.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted || depth != 0 {
        return Err(unbalanced());
    }
    pieces.push(&text[start..]);
    Ok(pieces)
}

/// Removes quotes; `""` inside a quoted part stands for one `"`.
pub fn dequote(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                out.push('"');
            }
            '"' => quoted = !quoted,
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &'static str, bare: bool) -> Key {
        Key { name, syntax: "<x>", default: String::new(), help: "", bare, fields: &[] }
    }

    fn parse(text: &str) -> Result<Options, ParseError> {
        Options::parse(text, &[key("a", false), key("b", false), key("off", true)])
    }

    #[test]
    fn commas_split_only_outside_quotes_and_brackets() {
        assert_eq!(split("a=1,b=[2,[3,4]],c=\"x,y\"").unwrap(), ["a=1", "b=[2,[3,4]]", "c=\"x,y\""]);
        assert_eq!(split("a=[1").unwrap_err().to_string(), "Invalid syntax: a=[1");
        assert_eq!(split("a=1]").unwrap_err().to_string(), "Invalid syntax: a=1]");
        assert_eq!(split("a=\"]\"").unwrap(), ["a=\"]\""]);
    }

    #[test]
    fn the_first_equals_sign_ends_the_key_and_the_last_repeat_wins() {
        let o = parse("a=x=y,b=1,b= 2 ").unwrap();
        assert_eq!(o.raw("a"), Some("x=y"));
        assert_eq!(o.raw("b"), Some("2"));
    }

    #[test]
    fn unknown_keys_missing_values_and_trailing_commas_are_refused_by_name() {
        assert_eq!(parse("z=1").unwrap_err().to_string(), "Unknown option: z");
        assert_eq!(parse("a=1, b=2").unwrap_err().to_string(), "Unknown option:  b");
        assert_eq!(parse("a=1,").unwrap_err().to_string(), "Unknown option: ");
        assert_eq!(parse("a").unwrap_err().to_string(), "Invalid syntax: a");
    }

    #[test]
    fn an_empty_text_sets_nothing_and_an_empty_value_counts_as_not_given() {
        assert!(parse("  ").unwrap().given.is_empty());
        let o = parse("a=,off").unwrap();
        assert!(o.is_set("a") && o.is_set("off"));
        assert_eq!(o.raw("a"), None);
    }

    #[test]
    fn quotes_are_removed_and_doubled_quotes_kept_once() {
        assert_eq!(dequote("\"a \"\"b\"\" c\"d"), "a \"b\" cd");
    }
}
