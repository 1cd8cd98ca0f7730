//! `--landlock-rules`: paths that a process kept to those of its machine may use besides.

use std::path::PathBuf;

use sandbox::{HostPath, Use};
use spec::{Facts, Refusal, Spec};

spec::spec! {
    /// A path that a process confined by --landlock or --jail may use besides those that its machine is made of: for what is added later,
    /// and for snapshots.
    pub struct LandlockRuleSpec: "landlock-rules" {
        flatten {}
        fields {
            /// A file, or a directory with all that is in it.
            "path" => path: Option<PathBuf> = None,
            /// r to read, w to write, rw for both.
            "access" => access: Option<String> = None,
        }
        unsupported {}
    }
}

impl Spec for LandlockRuleSpec {
    const FLAG: &'static str = LandlockRuleSpec::FLAG;
    const ABOUT: &'static str = LandlockRuleSpec::ABOUT;

    fn check(&self, _facts: &Facts) -> Result<(), Refusal> {
        let HostPath { path, .. } = self.path()?;
        match path.try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => {
                Err(Refusal::invalid(format!("Path {path:?} provided in landlock-rules does not exist")))
            }
            Err(e) => {
                let text = format!("Path {path:?} provided in landlock-rules cannot be looked at");
                Err(Refusal::invalid(text).because(e))
            }
        }
    }
}

impl LandlockRuleSpec {
    /// The path.
    ///
    /// # Errors
    /// There is none, or what may be done with it cannot be understood.
    pub fn path(&self) -> Result<HostPath, Refusal> {
        let (Some(path), Some(access)) = (&self.path, &self.access) else {
            return Err(Refusal::invalid("Error parsing --landlock-rules: path/access field missing"));
        };
        let used = match access.as_str() {
            "r" => Use::Read,
            "w" => Use::Write,
            "rw" | "wr" => Use::ReadWrite,
            other => return Err(Refusal::invalid(format!("Invalid landlock access: {other}"))),
        };
        Ok(HostPath::new(path, used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_understood_or_refused_in_the_words_of_the_contract() {
        let parse = |text: &str| LandlockRuleSpec::parse(text).unwrap();
        for (access, used) in
            [("r", Use::Read), ("w", Use::Write), ("rw", Use::ReadWrite), ("wr", Use::ReadWrite)]
        {
            let rule = parse(&format!("path=/,access={access}"));
            assert_eq!(rule.path().unwrap(), HostPath::new("/", used));
            assert!(rule.check(&Facts::default()).is_ok());
        }
        for (text, message) in [
            ("path=/", "Error parsing --landlock-rules: path/access field missing"),
            ("access=r", "Error parsing --landlock-rules: path/access field missing"),
            ("path=/,access=x", "Invalid landlock access: x"),
            ("path=/,access=rwr", "Invalid landlock access: rwr"),
            ("path=/no/such,access=r", "Path \"/no/such\" provided in landlock-rules does not exist"),
        ] {
            assert_eq!(parse(text).check(&Facts::default()).unwrap_err().to_string(), message, "{text}");
        }
    }
}
