//! TensorBoard's event files: records of TensorFlow, each length, masked CRC-32C of it, data, masked CRC-32C of that; the data
//! is one `Event` message. Fields' numbers are those of tensorboard/compat/proto/{event,summary,tensor}.proto.
use super::super::disk;
use super::protobuf::{Field, Message, fields};
use super::time;
use crate::error::{Error, Result};
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// TensorFlow's `DT_STRING`.
const STRING: u64 = 7;

#[derive(Debug)]
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// A new file in `dir`, named as TensorBoard finds them.
    pub fn create(dir: &Path, host: Option<&str>) -> Result<Events> {
        fs::create_dir_all(dir).map_err(Error::write(dir))?;
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
        let host: String = host.unwrap_or("localhost").chars().map(plain).collect();
        let name = format!("events.out.tfevents.{}.{host}.{}", time::now() as u64, std::process::id());
        let mut events = Events::append(dir.join(name))?;
        events.record(&event(0).bytes(3, b"brain.Event:2").finish())?;
        Ok(events)
    }

    /// Goes on in a file after step `done`: later events, and a record that a crash cut short, are taken away. `None`: the file
    /// is not there any more.
    pub fn resume(path: PathBuf, done: u64) -> Result<Option<Events>> {
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::read(&path)(e)),
        };
        let kept: Vec<u8> = records(&bytes).filter(|r| step_of(r) <= done).flat_map(framed).collect();
        if kept != bytes {
            disk::publish(&path, |temporary| disk::write(temporary, &kept))?;
        }
        Events::append(path).map(Some)
    }

    fn append(path: PathBuf) -> Result<Events> {
        let file = OpenOptions::new().create(true).append(true).open(&path).map_err(Error::write(&path))?;
        Ok(Events { path, file })
    }

    /// The file's name in its folder.
    pub fn name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub fn scalars(&mut self, step: u64, scalars: &[(String, f64)]) -> Result<()> {
        let value = |(tag, x): &(String, f64)| Message::default().bytes(1, tag.as_bytes()).float(2, *x as f32);
        let summary = scalars.iter().map(value).fold(Message::default(), |summary, value| summary.message(1, value));
        self.record(&event(step).message(5, summary).finish())
    }

    /// Shown as it is, not as Markdown: each line is indented by four.
    pub fn text(&mut self, step: u64, tag: &str, text: &str) -> Result<()> {
        let text: Vec<String> = text.lines().map(|line| format!("    {line}")).collect();
        let plugin = Message::default().bytes(1, b"text");
        let shape = Message::default().message(2, Message::default().int(1, 1));
        let tensor = Message::default().int(1, STRING).message(2, shape).bytes(8, text.join("\n").as_bytes());
        let metadata = Message::default().message(1, plugin);
        let tag = format!("{tag}/text_summary");
        let value = Message::default().bytes(1, tag.as_bytes()).message(8, tensor).message(9, metadata);
        self.record(&event(step).message(5, Message::default().message(1, value)).finish())
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let record = framed(data);
        self.file.write_all(&record).map_err(disk::full(&self.path, record.len() as u64))
    }

    pub fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(Error::write(&self.path))
    }
}

fn event(step: u64) -> Message {
    Message::default().double(1, time::now()).int(2, step)
}

fn step_of(event: &[u8]) -> u64 {
    let step = |(number, field)| match (number, field) {
        (2, Field::Int(step)) => Some(step),
        _ => None,
    };
    fields(event).unwrap_or_default().into_iter().find_map(step).unwrap_or(0)
}

fn framed(data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u64).to_le_bytes();
    [&len[..], &masked(&len), data, &masked(data)].concat()
}

/// The data of each record, up to the first that is damaged.
fn records(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(12)?;
        let len = u64::from_le_bytes(head[..8].try_into().ok()?);
        let (data, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
        let (crc, rest) = rest.split_at_checked(4)?;
        bytes = rest;
        (head[8..] == masked(&head[..8]) && crc == masked(data)).then_some(data)
    })
}

/// Rotated and shifted, so that the checksum of data that holds checksums is not one of them.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// Castagnoli's polynomial, reflected; RFC 3720, appendix B.4.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i = 0;
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(!0, |crc, byte| crc >> 8 ^ TABLE[(crc as u8 ^ byte) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (step, tag, value) of every scalar.
    fn scalars(path: &Path) -> Vec<(u64, String, f32)> {
        let bytes = fs::read(path).unwrap();
        let mut out = Vec::new();
        for record in records(&bytes) {
            for (number, field) in fields(record).unwrap() {
                let (5, Field::Bytes(summary)) = (number, field) else { continue };
                for (_, value) in fields(summary).unwrap() {
                    let Field::Bytes(value) = value else { panic!("a value is a message") };
                    let parts = fields(value).unwrap();
                    if let [(1, Field::Bytes(tag)), (2, Field::Fixed32(x))] = &parts[..] {
                        let tag = String::from_utf8(tag.to_vec()).unwrap();
                        out.push((step_of(record), tag, f32::from_le_bytes(*x)));
                    }
                }
            }
        }
        out
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa, "RFC 3720, appendix B.4");
    }

    #[test]
    fn a_resumed_run_has_each_event_once() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), Some("a host/x")).unwrap();
        let path = events.path.clone();
        assert!(events.name().starts_with("events.out.tfevents.") && events.name().contains(".a_host_x."));
        for step in 1..=4 {
            events.scalars(step, &[("train/loss".into(), step as f64 / 2.0), ("train/epoch".into(), 0.5)]).unwrap();
        }
        events.text(2, "samples", "# no heading\n<b>").unwrap();
        let mut bytes = fs::read(&path).unwrap();
        bytes.truncate(bytes.len() - 3);
        fs::write(&path, bytes).unwrap();
        let mut events = Events::resume(path.clone(), 2).unwrap().unwrap();
        events.scalars(3, &[("eval/loss".into(), 7.0)]).unwrap();
        events.sync().unwrap();
        let got: Vec<_> = scalars(&path).into_iter().filter(|(_, tag, _)| tag.ends_with("loss")).collect();
        let want = [(1, "train/loss", 0.5), (2, "train/loss", 1.0), (3, "eval/loss", 7.0)];
        assert_eq!(got, want.map(|(step, tag, x)| (step, tag.to_string(), x)));
        assert!(Events::resume(dir.path().join("gone"), 2).unwrap().is_none());
    }

    #[test]
    fn a_damaged_record_ends_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let mut events = Events::create(dir.path(), None).unwrap();
        for step in 1..=3 {
            events.scalars(step, &[("a".into(), 1.0)]).unwrap();
        }
        let path = events.path.clone();
        let mut bytes = fs::read(&path).unwrap();
        let whole = records(&bytes).count();
        assert_eq!(whole, 4, "the version, and three steps");
        let at = bytes.len() - 6;
        bytes[at] ^= 1;
        assert_eq!(records(&bytes).count(), 3);
        bytes.splice(0..8, u64::MAX.to_le_bytes());
        assert_eq!(records(&bytes).count(), 0, "a length that no file has");
    }
}
