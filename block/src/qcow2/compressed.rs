//! Compressed clusters.

use std::io::{self, Read};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::header::Compression;

/// The most memory that a zstd frame may ask for, in bytes; a cluster has 2 MiB at most.
const MAX_WINDOW: u64 = 8 << 20;

/// Decompresses one cluster. `input` may be longer than what belongs to it.
pub(super) fn inflate(compression: Compression, input: &[u8], output: &mut [u8]) -> io::Result<()> {
    let bad =
        |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("a compressed cluster: {what}"));
    match compression {
        Compression::Deflate => {
            let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
            let (status, _, length) = decompress(&mut DecompressorOxide::new(), input, output, 0, flags);
            match status {
                TINFLStatus::Done | TINFLStatus::HasMoreOutput if length == output.len() => Ok(()),
                status => Err(bad(format!("{status:?} after {length} bytes"))),
            }
        }
        Compression::Zstd => {
            let mut decoder = FrameDecoder::new();
            decoder.set_max_window_size(MAX_WINDOW);
            let mut stream =
                StreamingDecoder::new_with_decoder(input, decoder).map_err(|e| bad(e.to_string()))?;
            stream.read_exact(output).map_err(|e| bad(e.to_string()))
        }
    }
}
