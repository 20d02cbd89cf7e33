//! Numbers as Lua 5.1 reads them from text and writes them, and what weights are divided with.
//!
//! APISIX compares variables and cuts node keys with Lua's `tonumber` and `tostring`; a port `0x50`
//! or an id `7.0` means there what it means here. Pure.

/// Reads a number as `tonumber` of `LuaJIT` does: blanks around it, hexadecimal, `1e3`, `inf` and `nan`.
#[must_use]
pub fn from_text(text: &str) -> Option<f64> {
    let text = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, text.get(1..)?),
        b'+' => (false, text.get(1..)?),
        _ => (false, text),
    };
    let radix = |prefix: [&str; 2], radix| {
        let rest = prefix.iter().find_map(|prefix| digits.strip_prefix(prefix))?;
        let plain = rest.bytes().all(|byte| byte.is_ascii_hexdigit());
        plain.then(|| u64::from_str_radix(rest, radix).ok()).flatten()
    };
    #[expect(clippy::cast_precision_loss, reason = "Lua's numbers are doubles")]
    let whole = radix(["0x", "0X"], 16).or_else(|| radix(["0b", "0B"], 2)).map(|whole| whole as f64);
    let unsigned = match whole {
        Some(value) => value,
        None if digits.starts_with(['-', '+']) => return None,
        None => digits.parse().ok()?,
    };
    Some(if negative { -unsigned } else { unsigned })
}

/// Writes a number as Lua's `tostring` does: `%.14g`.
#[must_use]
pub fn to_text(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan".into() } else { format!("{number}") };
    }
    let scientific = format!("{number:.13e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..14).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.unsigned_abs());
    }
    let decimals = usize::try_from(13 - exponent).unwrap_or(0);
    without_zeros(&format!("{number:.decimals$}")).to_owned()
}

fn without_zeros(text: &str) -> &str {
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { text }
}

/// The greatest common divisor; that of nothing and `b` is `b`.
#[must_use]
pub fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The least common multiple of two numbers above zero. It stays what it was where it no longer fits 32 bits:
/// shares of weights are then a little off.
#[must_use]
pub fn lcm(a: u64, b: u64) -> u64 {
    let multiple = a / gcd(a, b) * b;
    if multiple > u64::from(u32::MAX) { a } else { multiple }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_lua_reads() {
        let read = [
            ("80", 80.0),
            (" 80\n", 80.0),
            ("0x50", 80.0),
            ("-0x10", -16.0),
            ("1e2", 100.0),
            ("1.5", 1.5),
            ("5.", 5.0),
            ("010", 10.0),
            ("+7", 7.0),
            ("inf", f64::INFINITY),
        ];
        for (text, number) in read {
            assert_eq!(from_text(text), Some(number), "{text:?}");
        }
        for text in ["", " ", "abc", "0x", "0xg", "1 2", "--1", "+-1", "1_0", "٣"] {
            assert_eq!(from_text(text), None, "{text:?}");
        }
    }

    #[test]
    fn writes_what_lua_writes() {
        let written = [
            (1.0, "1"),
            (1.5, "1.5"),
            (-1.0, "-1"),
            (0.1, "0.1"),
            (4_294_967_296.0, "4294967296"),
            (1e14, "1e+14"),
            (1e20, "1e+20"),
            (0.00001, "1e-05"),
            (0.0, "0"),
        ];
        for (number, text) in written {
            assert_eq!(to_text(number), text);
        }
    }
}
