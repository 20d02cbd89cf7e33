//! The time zone of this host.

use std::mem::MaybeUninit;

/// Seconds that the clocks of this host (`TZ`, else `/etc/localtime`) are ahead of UTC at a time in
/// seconds since 1970; 0 where that cannot be told.
#[must_use]
pub fn seconds_east(unix: i64) -> i32 {
    let time: libc::time_t = unix;
    let mut parts = MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers lead to what the function takes. It reads the variable TZ, which nothing here
    // ever sets.
    let result = unsafe { libc::localtime_r(&raw const time, parts.as_mut_ptr()) };
    if result.is_null() {
        return 0;
    }
    // SAFETY: the function has filled it; before, it was zeroes, which are values of all its fields.
    let parts = unsafe { parts.assume_init() };
    i32::try_from(parts.tm_gmtoff).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_that_of_date() {
        for unix in [1_700_000_000, 1_720_000_000] {
            let said = Command::new("date").args(["-d", &format!("@{unix}"), "+%z"]).output().unwrap();
            let said: i32 = String::from_utf8(said.stdout).unwrap().trim().parse().unwrap();
            let minutes = seconds_east(unix) / 60;
            assert_eq!(minutes / 60 * 100 + minutes % 60, said);
        }
    }
}
