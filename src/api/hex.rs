//! Bytes as hexadecimal digits, for `#[serde(with = "hex")]`.

use std::fmt::Write;

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serializer};

pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    serializer.serialize_str(&text)
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Box::<str>::deserialize(deserializer)?;
    bytes(text.as_bytes()).ok_or_else(|| D::Error::custom("bytes are given by two hexadecimal digits each"))
}

fn bytes(text: &[u8]) -> Option<Vec<u8>> {
    let digit = |digit: u8| char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let (pairs, rest) = text.as_chunks::<2>();
    let byte = |[high, low]: &[u8; 2]| Some(digit(*high)? << 4 | digit(*low)?);
    if rest.is_empty() { pairs.iter().map(byte).collect() } else { None }
}

#[cfg(test)]
mod tests {
    use crate::api::types::Progress;

    #[test]
    fn output_comes_back_as_it_was() {
        let all: Vec<u8> = (0..=255).collect();
        for block in [&all[..], b"", b"a\xc3\xa9\n", b"\xff"] {
            let line = Progress::of_output(Some("web"), block);
            assert_eq!(line.bytes.is_empty(), std::str::from_utf8(block).is_ok());
            let text = serde_json::to_string(&line).unwrap();
            let back: Progress = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((back.output(), &back.message), (block, &String::from_utf8_lossy(block).into()));
        }
        let text = serde_json::to_string(&Progress::of_output(None, b"\x0f\xff")).unwrap();
        assert!(text.contains(r#""bytes":"0fff""#), "{text}");
        for odd in ["0", "0g", "+1", "éé", " 1"] {
            let odd = text.replace("0fff", odd);
            assert!(serde_json::from_str::<Progress>(&odd).is_err(), "{odd}");
        }
    }
}
