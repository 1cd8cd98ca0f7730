//! Flat VMDK (VMware, "Virtual Disk Format" 5.0): a text file that names the file with the disk's bytes.
//!
//! The text may come from somebody who wants to see another file of ours. So the file it names must be in the same directory, must
//! not be a link, and is locked like an image of its own.

use std::sync::Arc;

use crate::format::Format;
use crate::image::Opened;
use crate::storage::{Access, Storage};
use crate::{Error, Result, SECTOR};

/// The longest descriptor that is read, in bytes.
const MAX_DESCRIPTOR: u64 = 64 << 10;

/// The one extent of a disk.
#[derive(Debug, PartialEq, Eq)]
struct Extent<'a> {
    sectors: u64,
    file: &'a str,
}

/// Opens the disk that a descriptor describes.
pub(crate) fn open(descriptor: &Arc<Storage>, access: &Access) -> Result<Opened> {
    let path = descriptor.path();
    let malformed = |what: String| Error::malformed(path, Format::Vmdk, what);
    let length = descriptor.length();
    if length > MAX_DESCRIPTOR {
        return Err(malformed(format!(
            "its descriptor of {length} bytes is too long; only flat ones can be used"
        )));
    }
    let mut text = vec![0; length as usize];
    let inspect = |source| Error::Inspect { path: path.to_owned(), what: "descriptor", source };
    descriptor.read_at(0, &mut text).map_err(inspect)?;
    let text = String::from_utf8_lossy(&text);
    let extent = parse(text.trim_end_matches('\0')).map_err(malformed)?;
    let data =
        Access { path: path.parent().unwrap_or(path).join(extent.file), follow: false, ..access.clone() };
    let storage = Storage::open(&data)?;
    // More than there is, among them a file of no bytes, is refused here too.
    let size = extent.sectors.checked_mul(SECTOR).filter(|size| *size <= storage.length());
    let size = size.ok_or_else(|| {
        malformed(format!("{} sectors do not fit into {}", extent.sectors, data.path.display()))
    })?;
    Ok(Opened { storage: Arc::new(storage), map: None, size })
}

/// Finds the extent, and whatever else would have to be understood.
fn parse(text: &str) -> std::result::Result<Extent<'_>, String> {
    let mut found = None;
    if !text.starts_with("# Disk DescriptorFile") {
        return Err("it has no text descriptor; only flat ones can be used".to_owned());
    }
    for line in text.lines().map(str::trim) {
        if let Some((key, value)) = line.split_once('=') {
            let (key, value) = (key.trim(), value.trim().trim_matches('"'));
            if key.eq_ignore_ascii_case("parentCID") && !value.eq_ignore_ascii_case("ffffffff") {
                return Err("it builds upon another image, which cannot be used".to_owned());
            }
            if key.eq_ignore_ascii_case("createType") && !value.to_ascii_lowercase().contains("flat") {
                return Err(format!("its createType is {value:?}; only flat ones can be used"));
            }
            continue;
        }
        let Some(rest) = line.strip_prefix("RW ").or_else(|| line.strip_prefix("RDONLY ")) else { continue };
        if found.is_some() {
            return Err("it has more than one extent, which cannot be used yet".to_owned());
        }
        found = Some(extent(rest)?);
    }
    found.ok_or_else(|| "it has no extent".to_owned())
}

/// `<sectors> FLAT "<file>" 0`.
fn extent(text: &str) -> std::result::Result<Extent<'_>, String> {
    let wrong =
        || format!("its extent {text:?} cannot be used: it must be flat, at offset 0, with a quoted name");
    let (head, tail) = text.split_once('"').ok_or_else(wrong)?;
    let (file, offset) = tail.rsplit_once('"').ok_or_else(wrong)?;
    let mut words = head.split_whitespace();
    let sectors = words.next().and_then(|word| word.parse().ok()).filter(|sectors| *sectors > 0);
    let kind = words.next().is_some_and(|word| word == "FLAT" || word == "VMFS") && words.next().is_none();
    let (true, Some(sectors), "" | "0") = (kind, sectors, offset.trim()) else { return Err(wrong()) };
    if file.is_empty() || file.contains(['/', '\0', '"']) || file == "." || file == ".." {
        return Err(format!("its extent is in {file:?}, which is not in the same directory"));
    }
    Ok(Extent { sectors, file })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(lines: &str) -> String {
        format!(
            "# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n{lines}\n"
        )
    }

    #[test]
    fn the_extent_must_be_flat_alone_and_beside_the_descriptor() {
        let text = descriptor("RW 8192 FLAT \"a b-flat.vmdk\" 0\nddb.adapterType = \"ide\"");
        assert_eq!(parse(&text), Ok(Extent { sectors: 8192, file: "a b-flat.vmdk" }));
        for lines in [
            "",
            "RW 8192 SPARSE \"a\"",
            "RW 0 FLAT \"a\" 0",
            "RW -1 FLAT \"a\" 0",
            "RW 99999999999999999999999 FLAT \"a\" 0",
            "RW 1 FLAT \"a\" 63",
            "RW 1 FLAT a 0",
            "RW 1 FLAT \"/etc/shadow\" 0",
            "RW 1 FLAT \"../a\" 0",
            "RW 1 FLAT \"..\" 0",
            "RW 1 FLAT \"\" 0",
            "RW 1 FLAT \"a\" 0\nRW 1 FLAT \"b\" 0",
            "RW 1 FLAT \"a\" 0\nparentCID=12345678",
            "RW 1 FLAT \"a\" 0\ncreateType=\"monolithicSparse\"",
        ] {
            assert!(parse(&descriptor(lines)).is_err(), "{lines}");
        }
        assert!(parse("KDMV").is_err());
    }
}
