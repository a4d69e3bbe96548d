//! Users and groups of this host by name: `/etc/passwd` and whatever else the host's name service asks. It keeps nothing.

use std::ffi::CString;
use std::io;

/// Room for the strings of an entry to begin with; what most entries need.
const ROOM_BYTES: usize = 1024;
/// A group lists its members: tens of thousands of them fit.
const ROOM_BYTES_MAX: usize = 1 << 20;

/// The number of a user; none where the host has no user of that name.
///
/// # Errors
/// The name service cannot be asked.
pub(crate) fn user_id(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    look_up(|room| {
        let mut found = std::ptr::null_mut();
        // SAFETY: a passwd is numbers and pointers, for which zeros are values.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        // SAFETY: the name ends with NUL, and everything that is written to lives during the call, `room` with the
        // length that is given.
        let error = unsafe {
            libc::getpwnam_r(name.as_ptr(), &mut entry, room.as_mut_ptr().cast(), room.len(), &mut found)
        };
        (error, (!found.is_null()).then_some(entry.pw_uid))
    })
}

/// The number of a group; none where the host has no group of that name.
///
/// # Errors
/// The name service cannot be asked.
pub(crate) fn group_id(name: &str) -> io::Result<Option<u32>> {
    let name = CString::new(name)?;
    look_up(|room| {
        let mut found = std::ptr::null_mut();
        // SAFETY: a group is numbers and pointers, for which zeros are values.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        // SAFETY: as in `user_id`.
        let error = unsafe {
            libc::getgrnam_r(name.as_ptr(), &mut entry, room.as_mut_ptr().cast(), room.len(), &mut found)
        };
        (error, (!found.is_null()).then_some(entry.gr_gid))
    })
}

fn look_up(call: impl Fn(&mut [u8]) -> (libc::c_int, Option<u32>)) -> io::Result<Option<u32>> {
    let mut room = vec![0; ROOM_BYTES];
    loop {
        match call(&mut room) {
            (0, id) => return Ok(id),
            (libc::EINTR, _) => {}
            (libc::ERANGE, _) if room.len() < ROOM_BYTES_MAX => room.resize(room.len() * 2, 0),
            // Several ways to say that there is none (getpwnam_r(3), section ERRORS).
            (libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM, _) => return Ok(None),
            (error, _) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_known_and_a_name_that_nobody_has_is_not() {
        assert_eq!((user_id("root").unwrap(), group_id("root").unwrap()), (Some(0), Some(0)));
        assert_eq!((user_id("no-such-user").unwrap(), group_id("no-such-group").unwrap()), (None, None));
    }

    #[test]
    fn an_entry_that_is_too_long_for_the_first_room_gets_more_up_to_the_limit() {
        let needs = |bytes: usize| {
            move |room: &mut [u8]| if room.len() < bytes { (libc::ERANGE, None) } else { (0, Some(7)) }
        };
        assert_eq!(look_up(needs(ROOM_BYTES_MAX)).unwrap(), Some(7));
        let error = look_up(needs(ROOM_BYTES_MAX + 1)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ERANGE));
    }
}
