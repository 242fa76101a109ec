//! Good files, and every way in which one may lie.
use super::*;

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// (name, dims fastest first, type, offset)
type Info<'a> = (&'a str, &'a [u64], u32, u64);

/// A file with these pairs (already encoded), tensors and bytes of data.
fn file(version: u32, pairs: &[(&str, Vec<u8>)], infos: &[Info], data: usize) -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(version.to_le_bytes());
    bytes.extend((infos.len() as u64).to_le_bytes());
    bytes.extend((pairs.len() as u64).to_le_bytes());
    for (key, value) in pairs {
        text(&mut bytes, key);
        bytes.extend(value);
    }
    for (name, dims, id, offset) in infos {
        text(&mut bytes, name);
        bytes.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| bytes.extend(dim.to_le_bytes()));
        bytes.extend(id.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], bytes].concat()
}

fn array(kind: u32, count: u64, bytes: &[u8]) -> Vec<u8> {
    value(9, &[&kind.to_le_bytes()[..], &count.to_le_bytes(), bytes].concat())
}

fn open(bytes: &[u8]) -> Result<Gguf> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    Gguf::open(&path)
}

fn fails(bytes: &[u8], with: &str) {
    let e = open(bytes).err().unwrap_or_else(|| panic!("must fail with {with}"));
    assert_eq!(e.exit_code(), 65);
    let e = e.to_string();
    assert!(e.contains("model.gguf") && e.contains(with), "{e}");
}

#[test]
fn both_versions_are_read() {
    let mut name = Vec::new();
    text(&mut name, "llama");
    let pairs = [
        ("general.architecture", value(8, &name)),
        ("a", value(4, &7u32.to_le_bytes())),
        ("b", value(6, &0.5f32.to_le_bytes())),
        ("c", array(5, 2, &[1, 0, 0, 0, 255, 255, 255, 255])),
        ("d", array(9, 1, &[&7u32.to_le_bytes()[..], &1u64.to_le_bytes(), &[1]].concat())),
    ];
    for version in [2, 3] {
        let g = open(&file(version, &pairs, &[("x", &[3, 2], 0, 0), ("y", &[32], 8, 32)], 66)).unwrap();
        assert_eq!(g.get("general.architecture").and_then(Value::as_text), Some("llama"));
        assert_eq!((g.get("a").and_then(Value::as_u64), g.get("b").and_then(Value::as_f64)), (Some(7), Some(0.5)));
        assert_eq!(g.get("c"), Some(&Value::Array(vec![Value::Signed(1), Value::Signed(-1)])));
        assert_eq!(g.get("d"), Some(&Value::Array(vec![Value::Array(vec![Value::Bool(true)])])));
        let (x, y) = (g.tensor("x").unwrap(), g.tensor("y").unwrap());
        assert_eq!((x.shape, x.bytes.len(), x.bytes[1], x.format.name), (&[2, 3][..], 24, 1, "F32"));
        assert_eq!((y.shape, y.bytes.len(), y.bytes[0], y.format.name), (&[32][..], 34, 32, "Q8_0"));
    }
}

#[test]
fn lies_are_errors() {
    let one = |info: Info| file(3, &[], &[info], 64);
    fails(b"GGU", "truncated");
    fails(b"PK\x03\x04aaaaaaaaaaaaaaaaaaaaaaaa", "starts with");
    fails(&file(1, &[], &[], 0), "version 1");
    fails(&file(3u32.swap_bytes(), &[], &[], 0), "big-endian");
    fails(&one(("x", &[1 << 40], 0, 0)), "beyond");
    fails(&one(("x", &[1 << 62, 1 << 62], 0, 0)), "beyond");
    fails(&one(("x", &[4], 0, u64::MAX - 31)), "beyond");
    fails(&one(("x", &[4], 0, 64)), "beyond");
    fails(&one(("x", &[4], 0, 4)), "multiple of 32");
    fails(&one(("x", &[33], 8, 0)), "whole blocks of 32");
    fails(&one(("x", &[0], 0, 0)), "whole blocks");
    fails(&one(("x", &[4], 4, 0)), "type 4");
    fails(&one(("x", &[1, 1, 1, 1, 1], 0, 0)), "5 dimensions");
    fails(&file(3, &[], &[("x", &[4], 0, 0), ("x", &[4], 0, 32)], 64), "twice");
    fails(&file(3, &[], &[("x", &[16], 0, 0), ("y", &[4], 0, 32)], 64), "overlaps `x`");
    let pair = |value: Vec<u8>| file(3, &[("k", value)], &[], 64);
    fails(&pair(value(13, &[])), "type 13");
    fails(&pair(value(7, &[2])), "truth");
    fails(&pair(value(8, &u64::MAX.to_le_bytes())), "truncated");
    fails(&pair(value(8, &[2, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe])), "UTF-8");
    fails(&pair(array(4, u64::MAX, &[])), "cannot hold");
    let nested =
        (0..20).fold(Vec::new(), |inner: Vec<u8>, _| [&9u32.to_le_bytes()[..], &1u64.to_le_bytes(), &inner].concat());
    fails(&pair(value(9, &nested)), "nested");
    fails(&file(3, &[("k", value(0, &[1])), ("k", value(0, &[1]))], &[], 0), "twice");
    fails(&file(3, &[("general.alignment", value(4, &33u32.to_le_bytes()))], &[], 0), "power of two");
    let mut many = file(3, &[], &[], 0);
    many[8..16].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    fails(&many, "cannot hold");
}

/// No cut, and no single wrong byte of a header, is worse than an error.
#[test]
fn damage_never_panics() {
    let pairs =
        [("general.alignment", value(4, &32u32.to_le_bytes())), ("k", array(8, 1, &[1, 0, 0, 0, 0, 0, 0, 0, 65]))];
    let whole = file(3, &pairs, &[("x", &[3, 2], 0, 0), ("y", &[32], 8, 32)], 66);
    let read = |bytes: &[u8]| read::header(bytes).is_ok();
    assert!(read(&whole));
    assert!((0..whole.len()).all(|cut| !read(&whole[..cut])));
    for i in 0..whole.len() - 66 {
        for byte in [0, 1, 127, 255] {
            let mut bytes = whole.clone();
            bytes[i] = byte;
            if let Ok(header) = read::header(&bytes) {
                assert!(header.tensors.iter().all(|t| t.range.end <= bytes.len()));
            }
        }
    }
}

#[test]
fn parts_of_a_split_model_are_one() {
    let dir = tempfile::tempdir().unwrap();
    let path = |n: usize| dir.path().join(format!("m-0000{n}-of-00002.gguf"));
    let count = |n: u16| ("split.count", value(2, &n.to_le_bytes()));
    std::fs::write(path(1), file(3, &[count(2)], &[("x", &[4], 0, 0)], 16)).unwrap();
    std::fs::write(path(2), file(3, &[count(2)], &[("y", &[4], 0, 0)], 16)).unwrap();
    for part in [path(1), path(2)] {
        assert_eq!(Gguf::open(&part).unwrap().names().collect::<Vec<_>>(), ["x", "y"]);
    }
    assert_eq!(find(dir.path()).unwrap(), Some(path(1)));
    std::fs::write(path(2), file(3, &[count(2)], &[("x", &[4], 0, 0)], 16)).unwrap();
    assert!(Gguf::open(&path(1)).err().unwrap().to_string().contains("two parts"));
    std::fs::remove_file(path(2)).unwrap();
    assert_eq!(Gguf::open(&path(1)).err().unwrap().exit_code(), 74);
    std::fs::rename(path(1), dir.path().join("m.gguf")).unwrap();
    assert!(Gguf::open(&dir.path().join("m.gguf")).err().unwrap().to_string().contains("one of 2 parts"));
    std::fs::write(dir.path().join("other.gguf"), "GGUF").unwrap();
    assert!(find(dir.path()).unwrap_err().to_string().contains("2 GGUF models"));
}
