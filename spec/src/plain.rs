//! Text with words in it that others chose, for people: it says nothing to their terminal, and begins no line of its own.

use std::fmt::Write;

/// Adds a text. Control characters, but for those that are `kept`, become what JSON writes for them.
pub fn escape(out: &mut String, text: &str, kept: &[char]) {
    for c in text.chars() {
        match c {
            c if !c.is_control() || kept.contains(&c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a String cannot fail.
            c => drop(write!(out, "\\u{:04x}", u32::from(c))),
        }
    }
}

/// The text in lines of its own, so escaped.
pub fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape(&mut out, text, &['\n', '\t']);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys_and_json_stays_the_same() {
        let text = "{\"a\":\t\"ü\u{1b}[2J\r\u{9b}\u{0}\"}\n";
        assert_eq!(plain(text), "{\"a\":\t\"ü\\u001b[2J\\r\\u009b\\u0000\"}\n");
        let mut line = String::new();
        escape(&mut line, text, &[]);
        assert_eq!(line, "{\"a\":\\t\"ü\\u001b[2J\\r\\u009b\\u0000\"}\\n");
        let proper = "{\"a\": \"\u{9b}\"}";
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&plain(proper)), value(proper));
    }
}
