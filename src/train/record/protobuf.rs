//! As much of Protocol Buffers' wire format as TensorBoard's events need: fields written by number, and read back.

/// A message in the making.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

impl Message {
    fn tag(&mut self, field: u64, wire: u64) {
        varint(&mut self.0, field << 3 | wire);
    }
    pub fn int(mut self, field: u64, value: u64) -> Message {
        self.tag(field, 0);
        varint(&mut self.0, value);
        self
    }
    pub fn double(mut self, field: u64, value: f64) -> Message {
        self.tag(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn float(mut self, field: u64, value: f32) -> Message {
        self.tag(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }
    pub fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        self.tag(field, 2);
        varint(&mut self.0, value.len() as u64);
        self.0.extend(value);
        self
    }
    pub fn message(self, field: u64, value: Message) -> Message {
        self.bytes(field, &value.0)
    }
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Seven bits a byte, the lowest first.
fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A field's value as it is on the wire.
#[derive(Debug, PartialEq)]
pub(super) enum Field<'a> {
    Int(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(&'a [u8]),
}

/// The fields of a message with their numbers; `None` where it is no message.
pub(super) fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Field<'_>)>> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let field = match tag & 7 {
            0 => Field::Int(take_varint(&mut bytes)?),
            1 => Field::Fixed64(take(&mut bytes, 8)?.try_into().ok()?),
            2 => {
                let len = take_varint(&mut bytes)?;
                Field::Bytes(take(&mut bytes, usize::try_from(len).ok()?)?)
            }
            5 => Field::Fixed32(take(&mut bytes, 4)?.try_into().ok()?),
            _ => return None,
        };
        out.push((tag >> 3, field));
    }
    Some(out)
}

fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, rest) = bytes.split_at_checked(n)?;
    *bytes = rest;
    Some(head)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let [byte] = take(bytes, 1)? else { return None };
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let inner = Message::default().bytes(1, b"abc");
        let bytes = Message::default().int(2, 300).double(1, 0.5).float(3, -2.0).message(20, inner).finish();
        let want = [
            (2, Field::Int(300)),
            (1, Field::Fixed64(0.5f64.to_le_bytes())),
            (3, Field::Fixed32((-2.0f32).to_le_bytes())),
            (20, Field::Bytes(b"\x0a\x03abc")),
        ];
        assert_eq!(fields(&bytes).unwrap(), want);
        // The example of the format's own documentation: field 1 = 150.
        assert_eq!(Message::default().int(1, 150).finish(), [0x08, 0x96, 0x01]);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(fields(&[0x0a, 0x05, b'a']), None, "longer than there is");
        assert_eq!(fields(&[0x08]), None, "no value");
        assert_eq!(fields(&[0x0b]), None, "a group");
        assert_eq!(fields(&[0x80; 11]), None, "a number without an end");
        assert_eq!(fields(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]), None);
    }
}
