//! Those of ggml's formats that stay packed on a device; each has an op (`ops/gguf.rs`).
use super::Format;

/// The formats that have an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packed {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
}

impl Packed {
    /// With the names that files and tools know.
    pub const ALL: [(Packed, &str); 8] = [
        (Packed::Q4_0, "Q4_0"),
        (Packed::Q4_1, "Q4_1"),
        (Packed::Q5_0, "Q5_0"),
        (Packed::Q5_1, "Q5_1"),
        (Packed::Q8_0, "Q8_0"),
        (Packed::Q4K, "Q4_K"),
        (Packed::Q5K, "Q5_K"),
        (Packed::Q6K, "Q6_K"),
    ];

    pub fn of(format: Format) -> Option<Packed> {
        Packed::ALL.iter().find(|(_, name)| *name == format.name).map(|(packed, _)| *packed)
    }

    /// In [`Packed::ALL`].
    pub fn place(self) -> u32 {
        Packed::ALL.iter().position(|(packed, _)| *packed == self).expect("all are there") as u32
    }
    /// Values of a block, and its bytes.
    pub fn block(self) -> (usize, usize) {
        let format = Format::named(Packed::ALL[self.place() as usize].1).expect("files know it");
        (format.len, format.bytes)
    }
}
