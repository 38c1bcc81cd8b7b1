//! How a private key is written: PKCS #8, or SEC 1 as the kubelet writes its own.

use anyhow::{Context, Result};
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// The encoding of a private key in a PEM file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyForm {
    /// `BEGIN PRIVATE KEY`, as most tools write.
    Pkcs8,
    /// `BEGIN EC PRIVATE KEY`, as Go programs write, the kubelet among them.
    Sec1,
}

pub(super) fn to_pem(key: &KeyPair, form: KeyForm) -> Result<String> {
    match form {
        KeyForm::Pkcs8 => Ok(key.serialize_pem()),
        KeyForm::Sec1 => {
            let der = sec1(key).context("cannot write a key in SEC 1 form")?;
            Ok(pem("EC PRIVATE KEY", &der))
        }
    }
}

/// RFC 5915 for P-256: version 1, the scalar, the curve, the public point. All lengths are fixed,
/// so the frame can be written out.
fn sec1(key: &KeyPair) -> Result<Vec<u8>> {
    const HEAD: [u8; 7] = [0x30, 0x77, 0x02, 0x01, 0x01, 0x04, 0x20];
    const CURVE: [u8; 12] = [
        0xa0, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07,
    ];
    const POINT: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
    let scalar = scalar(key.serialized_der()).context("no P-256 scalar in the PKCS #8 key")?;
    let der = [&HEAD, scalar, &CURVE, &POINT, key.public_key_raw()].concat();
    anyhow::ensure!(der.len() == 0x77 + 2, "{} bytes, expected 121", der.len());
    // Nobody shall have to find out from a failing handshake that this is no key.
    let pkcs8 = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialized_der()));
    let sec1 = PrivateKeyDer::Sec1(der.as_slice().into());
    let public = |key: &PrivateKeyDer<'_>| -> Result<Vec<u8>> {
        let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(key)?;
        Ok(key
            .public_key()
            .context("a key without public part")?
            .to_vec())
    };
    anyhow::ensure!(
        public(&pkcs8)? == public(&sec1)?,
        "the two forms are different keys"
    );
    Ok(der)
}

/// The inner structure of PKCS #8 starts with version 1 and the 32 bytes that we want.
fn scalar(pkcs8: &[u8]) -> Option<&[u8]> {
    const BEFORE: [u8; 5] = [0x02, 0x01, 0x01, 0x04, 0x20];
    let start = pkcs8
        .windows(BEFORE.len())
        .position(|window| window == BEFORE)?
        + BEFORE.len();
    pkcs8.get(start..start + 32)
}

fn pem(label: &str, der: &[u8]) -> String {
    let encoded = base64(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = encoded.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Written out because no crate of the workspace offers it.
fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in data.chunks(3) {
        let mut bytes = [0; 3];
        bytes
            .iter_mut()
            .zip(group)
            .for_each(|(byte, given)| *byte = *given);
        let bits = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) & 63;
            let written = digit <= group.len();
            let index = usize::try_from(value).expect("six bits");
            let digit = DIGITS.get(index).expect("six bits are below 64");
            text.push(if written { char::from(*digit) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_pads_every_remainder() {
        let encoded: Vec<String> = ["", "f", "fo", "foo", "foob", "fooba", "foobar"]
            .iter()
            .map(|text| base64(text.as_bytes()))
            .collect();
        let expected = [
            "", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy",
        ];
        assert_eq!(encoded, expected);
    }
}
