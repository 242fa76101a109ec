//! How files order a weight that the device holds as rows of output channels.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As the device: [O, C].
    Rows,
    /// [C, O].
    Transposed,
    /// Rows of H heads of D: the file has head after head, each with q, k and v; the device all q, all k, all v.
    Heads { H: usize, D: usize },
}

/// q, k and v.
const PARTS: usize = 3;

impl Layout {
    /// The file's [rows, columns] of what is [O, C] on the device, and the other way round.
    pub fn turned(self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        if self == Layout::Transposed { [cols, rows] } else { [rows, cols] }
    }

    /// That of a vector or matrix whose rows are the same output channels: a bias, an adapter's B.
    pub fn of_rows(self) -> Layout {
        if self == Layout::Transposed { Layout::Rows } else { self }
    }

    /// A tensor [rows, cols] of the file (elements of `size` values each) in the device's order.
    pub fn to_device<T: Copy>(self, file: &[T], shape: [usize; 2], size: usize) -> Vec<T> {
        match self {
            Layout::Rows => file.to_vec(),
            Layout::Transposed => transposed(file, shape, size),
            Layout::Heads { H, D } => exchanged(file, [H, PARTS], D),
        }
    }

    /// The reverse; `shape` is the file's.
    pub fn to_file<T: Copy>(self, device: &[T], shape: [usize; 2], size: usize) -> Vec<T> {
        match self {
            Layout::Rows => device.to_vec(),
            Layout::Transposed => transposed(device, self.turned(shape), size),
            Layout::Heads { H, D } => exchanged(device, [PARTS, H], D),
        }
    }
}

fn transposed<T: Copy>(from: &[T], [rows, cols]: [usize; 2], size: usize) -> Vec<T> {
    assert_eq!(from.len(), rows * cols * size);
    let element = |c: usize, r: usize| &from[(r * cols + c) * size..][..size];
    (0..cols).flat_map(|c| (0..rows).flat_map(move |r| element(c, r))).copied().collect()
}

/// Rows [outer][inner][D] as [inner][outer][D], of whatever length.
fn exchanged<T: Copy>(from: &[T], [outer, inner]: [usize; 2], D: usize) -> Vec<T> {
    let unit = from.len() / (outer * inner);
    assert!(unit * outer * inner == from.len() && unit.is_multiple_of(D));
    let part = |i: usize, o: usize| &from[(o * inner + i) * unit..][..unit];
    (0..inner).flat_map(|i| (0..outer).flat_map(move |o| part(i, o))).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        let file: Vec<u16> = (0..24).collect();
        let heads = Layout::Heads { H: 2, D: 2 };
        // 2 heads of q, k, v of 2 rows of 2 elements
        let device = heads.to_device(&file, [12, 2], 1);
        assert_eq!(device, [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 16, 17, 18, 19, 8, 9, 10, 11, 20, 21, 22, 23]);
        assert_eq!(heads.to_file(&device, [12, 2], 1), file);
        let turned = Layout::Transposed.to_device(&file, [3, 4], 2);
        assert_eq!(turned[..6], [0, 1, 8, 9, 16, 17]);
        assert_eq!(Layout::Transposed.to_file(&turned, [3, 4], 2), file);
    }
}
