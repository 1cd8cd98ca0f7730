//! Archives that follow an initramfs's first one: the `newc` format of `Documentation/driver-api/early-userspace/buffer-format.rst`.

/// An archive of plain files, as (path, content). Directories on the way must be in an archive before.
pub fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, content) in files {
        entry(&mut out, path, 0o100_755, content);
    }
    entry(&mut out, "TRAILER!!!", 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, path: &str, mode: u32, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("the format's sizes have 32 bits");
    let name = u32::try_from(path.len() + 1).expect("a path is short");
    // Number of the file, mode, owner, group, links, time, size, device (2), special device (2), length of the name, check sum.
    let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    #[test]
    fn each_part_begins_at_a_multiple_of_four() {
        let bytes = super::archive(&[("script", b"hello")]);
        // Header and name: 110 + 7, padded to 120; the content, padded to 8; header and name of the trailer: 110 + 11.
        assert_eq!(bytes.len(), 120 + 8 + 124);
        assert_eq!(&bytes[120..125], b"hello");
        assert_eq!(&bytes[128..134], b"070701");
    }
}
