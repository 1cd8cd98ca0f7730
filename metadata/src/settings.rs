//! `--metadata`, and `metadata` in `vm.create`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sandbox::{HostPath, Use};
use spec::{Kind, Refusal, Spec};

use crate::document::MAX_DOCUMENT;
use crate::{Document, Store, TokenUse};

/// Most bytes of a file: those of a document, and four times as many between its parts.
const MAX_FILE: u64 = 5 * MAX_DOCUMENT as u64;

spec::spec! {
    /// What the guest finds at http://169.254.169.254/ over its network cards, and at http://[fd00:ec2::254]/. It is a JSON document, as in a
    /// cloud: {"latest": {"meta-data": {"local-hostname": "web"}, "user-data": "#cloud-config"}}. A path alone is the same as file=. Every card
    /// on a tap has it, but for those with metadata=off.
    pub struct MetadataSpec: "metadata" {
        flatten {}
        fields {
            /// The document, at most 51200 bytes of JSON. It is read when the machine is described or restored, and changed by
            /// vm.metadata; without, there is nothing to be found at first.
            "file" => file: Option<PathBuf> = None,
            /// Whether a request needs a session token, had by PUT /latest/api/token.
            "tokens" => tokens: TokenUse = TokenUse::Optional,
        }
        unsupported {}
    }
}

impl Spec for MetadataSpec {
    const FLAG: &'static str = MetadataSpec::FLAG;
    const ABOUT: &'static str = MetadataSpec::ABOUT;

    fn short(text: &str) -> Option<&'static str> {
        let first = text.split(',').next().unwrap_or_default();
        (!first.is_empty() && !first.contains('=')).then_some("file")
    }
}

impl MetadataSpec {
    /// Its properties in JSON, all of which may be others when a saved machine is restored.
    pub const KEYS_IN_JSON: &'static [&'static str] = &["file", "tokens"];

    /// The paths that [`MetadataSpec::open`] opens.
    pub fn paths(&self) -> impl Iterator<Item = HostPath> {
        self.file.iter().map(|path| HostPath::new(path, Use::Read))
    }

    /// Reads the document.
    ///
    /// # Errors
    /// The file cannot be read, or is no document.
    pub fn open(&self) -> Result<Store, Refusal> {
        let document = self.file.as_deref().map(read).transpose()?.unwrap_or_default();
        Ok(Store::new(document, self.tokens))
    }
}

fn read(path: &Path) -> Result<Document, Refusal> {
    let what = || format!("Cannot read the metadata document {}", path.display());
    let mut text = Vec::new();
    let file = File::open(path).map_err(|e| Refusal::host(what(), e))?;
    file.take(MAX_FILE + 1).read_to_end(&mut text).map_err(|e| Refusal::host(what(), e))?;
    if text.len() as u64 > MAX_FILE {
        return Err(Refusal::invalid(format!("the file has more than {MAX_FILE} bytes")).within(what()));
    }
    Document::parse(&text).map_err(|e| Refusal::new(Kind::Invalid, what()).because(e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_alone_is_the_file() {
        let parse = |text: &str| MetadataSpec::parse(text);
        let plain = parse("/srv/meta.json").unwrap();
        assert_eq!(plain, parse("file=/srv/meta.json").unwrap());
        let both = parse("/srv/meta.json,tokens=required").unwrap();
        assert_eq!(
            (both.file.as_deref(), both.tokens),
            (Some(Path::new("/srv/meta.json")), TokenUse::Required)
        );
        assert_eq!(parse("tokens=required").unwrap().file, None);
        assert_eq!(parse("").unwrap(), MetadataSpec::default());
        for text in ["tokens=some", "nonsense=1", "/a,/b"] {
            assert_eq!(parse(text).unwrap_err().chain()[0], "Error parsing --metadata", "{text}");
        }
        let json = r#"{"file":"/srv/meta.json","tokens":"Required"}"#;
        assert_eq!(serde_json::from_str::<MetadataSpec>(json).unwrap(), both);
        assert_eq!(serde_json::to_string(&both).unwrap(), json);
    }

    #[test]
    fn files_that_hold_no_document_are_refused_by_name() {
        let path = std::env::temp_dir().join(format!("metadata-{}", std::process::id()));
        let spec = MetadataSpec { file: Some(path.clone()), ..MetadataSpec::default() };
        let refused = || spec.open().unwrap_err().chain();
        assert_eq!(refused()[0], format!("Cannot read the metadata document {}", path.display()));
        let large = " ".repeat(MAX_FILE as usize + 1);
        for (text, why) in [
            ("[]", "it must be a JSON object"),
            ("{", "it must be a JSON object"),
            (&large, "the file has more than 256000 bytes"),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(refused()[1], why);
        }
        std::fs::write(&path, r#"{"a":  "b"}"#).unwrap();
        assert_eq!(spec.open().unwrap().document().to_json(), r#"{"a":"b"}"#);
        std::fs::remove_file(&path).unwrap();
        let endless = MetadataSpec { file: Some("/dev/zero".into()), ..MetadataSpec::default() };
        assert_eq!(endless.open().unwrap_err().kind(), Kind::Invalid);
    }
}
