//! Numbers as people read them.

/// `41s`, `7m03s`, `2h05m`.
pub fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0).round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s / 60 % 60),
    }
}

/// Digits in groups of three: 1,234,567.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let comma = |(i, digit): (usize, char)| {
        let comma = i > 0 && (digits.len() - i).is_multiple_of(3);
        comma.then_some(',').into_iter().chain([digit])
    };
    digits.chars().enumerate().flat_map(comma).collect()
}

/// `512 B`, `3.4 MiB`, `78.9 GiB`.
pub fn bytes(n: u64) -> String {
    let (mut x, mut unit) = (n as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if x < 1024.0 {
            break;
        }
        (x, unit) = (x / 1024.0, next);
    }
    if unit == "B" { format!("{n} B") } else { format!("{x:.1} {unit}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let got: Vec<String> = [0.4, 59.0, 63.0, 7503.0, -1.0].into_iter().map(duration).collect();
        assert_eq!(got, ["0s", "59s", "1m03s", "2h05m", "0s"]);
        assert_eq!([1, 999, 1000, 1234567].map(grouped), ["1", "999", "1,000", "1,234,567"]);
        assert_eq!([512, 1024, 3 << 20, 5 << 40].map(bytes), ["512 B", "1.0 KiB", "3.0 MiB", "5.0 TiB"]);
    }
}
