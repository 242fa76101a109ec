//! ggml's tensor types: numbers, names, and how many bytes hold how many values.

/// How a tensor's values are stored: blocks of `len` values in `bytes` bytes, the first dimension in whole blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Format {
    /// In files.
    pub id: u32,
    pub name: &'static str,
    pub len: usize,
    pub bytes: usize,
}

const fn format(id: u32, name: &'static str, len: usize, bytes: usize) -> Format {
    Format { id, name, len, bytes }
}

/// Every type there is, also those that nothing here computes with: a reader must know their sizes.
pub const FORMATS: &[Format] = &[
    format(0, "F32", 1, 4),
    format(1, "F16", 1, 2),
    format(2, "Q4_0", 32, 18),
    format(3, "Q4_1", 32, 20),
    format(6, "Q5_0", 32, 22),
    format(7, "Q5_1", 32, 24),
    format(8, "Q8_0", 32, 34),
    format(9, "Q8_1", 32, 40),
    format(10, "Q2_K", 256, 84),
    format(11, "Q3_K", 256, 110),
    format(12, "Q4_K", 256, 144),
    format(13, "Q5_K", 256, 176),
    format(14, "Q6_K", 256, 210),
    format(15, "Q8_K", 256, 292),
    format(16, "IQ2_XXS", 256, 66),
    format(17, "IQ2_XS", 256, 74),
    format(18, "IQ3_XXS", 256, 98),
    format(19, "IQ1_S", 256, 50),
    format(20, "IQ4_NL", 32, 18),
    format(21, "IQ3_S", 256, 110),
    format(22, "IQ2_S", 256, 82),
    format(23, "IQ4_XS", 256, 136),
    format(24, "I8", 1, 1),
    format(25, "I16", 1, 2),
    format(26, "I32", 1, 4),
    format(27, "I64", 1, 8),
    format(28, "F64", 1, 8),
    format(29, "IQ1_M", 256, 56),
    format(30, "BF16", 1, 2),
    format(34, "TQ1_0", 256, 54),
    format(35, "TQ2_0", 256, 66),
    format(39, "MXFP4", 32, 17),
    format(40, "NVFP4", 64, 36),
    format(41, "Q1_0", 128, 18),
];

impl Format {
    pub fn of_id(id: u32) -> Option<Format> {
        FORMATS.iter().find(|f| f.id == id).copied()
    }
    pub fn named(name: &str) -> Option<Format> {
        FORMATS.iter().find(|f| f.name == name).copied()
    }
    /// Bytes of `values` values, which are whole blocks.
    pub fn size(self, values: usize) -> usize {
        values / self.len * self.bytes
    }
}
