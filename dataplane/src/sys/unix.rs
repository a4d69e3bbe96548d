//! Unix sockets that listen, and their files: made, given rights and removed here. Nothing else is ever removed: neither a
//! file that is no socket, nor a socket that some process has bound. It does not accept: `socket` does.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proto::config::{Account, SocketAccess};
use rustix::fs::{AtFlags, CWD, FileType, Gid, MemfdFlags, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use socket2::{Domain, SockAddr, Socket, Type};

use super::accounts;

/// Nobody but this user, until the rights that the config gives are set.
const CLOSED: u32 = 0o600;
/// New files get the group of a folder with this bit (inode(7)).
const SETGID: u32 = 0o2000;

/// Which file it is, whatever its name: a file that is replaced is another one. While a socket is bound, no other file of
/// that file system gets its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    dev: u64,
    ino: u64,
}

/// What stands where a Unix socket is to be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nothing.
    Nothing,
    /// A socket that no process has bound any more.
    Stale,
    /// A socket that a process has bound, or may have.
    Held,
    /// What is no socket, such as `an ordinary file`.
    Other(&'static str),
}

/// Why a Unix socket cannot be had, where the kernel's own words would not tell.
#[derive(Debug)]
pub(crate) enum Obstacle {
    /// What stands there is no socket.
    Occupied(&'static str),
    /// The host has no such user or group.
    Unknown {
        /// `user` or `group`.
        kind: &'static str,
        /// Its name in the config.
        name: String,
    },
    /// This process may not give a file away to that user or group.
    NotAllowed {
        /// `user` or `group`.
        kind: &'static str,
        /// Its number.
        id: u32,
    },
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Occupied(what) => write!(f, "{what} stands there, which is left as it is"),
            Self::Unknown { kind, name } => write!(f, "this host has no {kind} \"{name}\""),
            Self::NotAllowed { kind, id } => {
                write!(f, "this process may not give the socket to the {kind} {id}")
            }
        }
    }
}

impl std::error::Error for Obstacle {}

impl Obstacle {
    /// The one in this error, if it is one.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What to do about it.
    pub(crate) fn help(&self) -> String {
        match self {
            Self::Occupied(_) => "move it away, or write another path".to_owned(),
            Self::Unknown { kind: "group", .. } => "`getent group` lists the groups".to_owned(),
            Self::Unknown { .. } => "`getent passwd` lists the users".to_owned(),
            Self::NotAllowed { kind: "group", .. } => {
                "make this process's user a member of that group (SupplementaryGroups= in the unit)"
                    .to_owned()
            }
            Self::NotAllowed { .. } => {
                "give it CAP_CHOWN, or share a group with that user instead: `group` and mode \"0660\""
                    .to_owned()
            }
        }
    }

    /// As what the calls of this module return.
    pub(crate) fn into_error(self) -> io::Error {
        let kind = match self {
            Self::Occupied(_) => io::ErrorKind::AddrInUse,
            Self::Unknown { .. } => io::ErrorKind::NotFound,
            Self::NotAllowed { .. } => io::ErrorKind::PermissionDenied,
        };
        io::Error::new(kind, self)
    }
}

/// Opens a socket that listens at `path`. A stale socket there is replaced, anything else is an error and stays. Nobody
/// can connect before the file has its rights: until then the socket does not listen.
pub(crate) fn listen(path: &Path, access: &SocketAccess, backlog: i32) -> io::Result<(OwnedFd, FileId)> {
    let owners = Owners::of(access)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None)?;
    // The file gets the rights of the socket's own inode, less the umask (`unix_bind_bsd` of the kernel). Where that does
    // not work it looks more open for a moment, in which nobody can connect either.
    let _ = rustix::fs::fchmod(&socket, Mode::from_raw_mode(CLOSED));
    bind(&socket, path)?;
    let file = FileId::at(path).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let listening = set_rights(path, file, access.mode, owners).and_then(|()| socket.listen(backlog));
    if let Err(error) = listening {
        remove(path, file);
        return Err(error);
    }
    Ok((socket.into(), file))
}

/// Gives the file of a socket of ours other rights. It is never more open in between than it was or will be.
pub(crate) fn set_access(path: &Path, file: FileId, access: &SocketAccess) -> io::Result<()> {
    let Owners { user, group } = Owners::of(access)?;
    let owners = Owners {
        user: Some(user.unwrap_or_else(rustix::process::geteuid)),
        group: Some(group.unwrap_or_else(|| group_of_new_files(path))),
    };
    set_rights(path, file, access.mode, owners)
}

/// Whether the host has the user and the group.
pub(crate) fn find_owners(access: &SocketAccess) -> io::Result<()> {
    Owners::of(access).map(|_| ())
}

/// Whether a socket of ours can be given these rights, tried on a file that is thrown away.
pub(crate) fn try_access(access: &SocketAccess) -> io::Result<()> {
    let Owners { user, group } = Owners::of(access)?;
    if user.is_none() && group.is_none() {
        return Ok(());
    }
    let file = rustix::fs::memfd_create("access", MemfdFlags::CLOEXEC)?;
    give(&file, None, group)?;
    give(&file, user, None)
}

/// Removes the file of a socket of ours; another one that has its name by now stays.
pub(crate) fn remove(path: &Path, file: FileId) {
    if FileId::at(path) == Some(file) {
        // Failure means that it is gone already, or that the next start has to replace it.
        let _ = rustix::fs::unlink(path);
    }
}

/// What stands at `path`.
///
/// # Errors
/// It cannot be looked at.
pub(crate) fn look(path: &Path) -> io::Result<Standing> {
    Ok(Pin::at(path)?.map_or(Standing::Nothing, |pin| pin.standing(path)))
}

impl FileId {
    /// Of what stands at `path`, a symbolic link itself and not what it points to.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        Pin::at(path).ok().flatten().map(|pin| pin.id())
    }
}

fn bind(socket: &Socket, path: &Path) -> io::Result<()> {
    let address = SockAddr::unix(path)?;
    let taken = match socket.bind(&address) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        result => return result,
    };
    let Some(pin) = Pin::at(path)? else { return socket.bind(&address) };
    match pin.standing(path) {
        Standing::Nothing => {}
        Standing::Stale => remove_stale(path, &pin)?,
        Standing::Held => return Err(taken),
        Standing::Other(what) => return Err(Obstacle::Occupied(what).into_error()),
    }
    socket.bind(&address)
}

/// Removes the stale socket that was looked at. Two processes may have looked at the same one, and the faster may have
/// its own there by now: so the file is moved aside, which only one of them can do, and looked at again.
fn remove_stale(path: &Path, looked_at: &Pin) -> io::Result<()> {
    let aside = beside(path);
    match rustix::fs::renameat_with(CWD, path, CWD, &aside, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // The other one was faster, and has not bound its own yet: then the bind tells.
        Err(Errno::NOENT) => return Ok(()),
        // A file system that cannot do that.
        Err(Errno::INVAL | Errno::NOSYS) => {
            remove(path, looked_at.id());
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    if FileId::at(&aside) == Some(looked_at.id()) {
        return Ok(rustix::fs::unlink(&aside)?);
    }
    rustix::fs::renameat_with(CWD, &aside, CWD, path, RenameFlags::NOREPLACE)?;
    Err(io::Error::from_raw_os_error(libc::EADDRINUSE))
}

/// A name that nobody else uses, in the same folder.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.stale", std::process::id()))
}

/// A file that is held without being opened: as long as it is, no other file gets its number.
struct Pin {
    fd: OwnedFd,
    stat: Stat,
}

impl Pin {
    /// None: there is nothing.
    fn at(path: &Path) -> io::Result<Option<Self>> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(path, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&fd)?;
        Ok(Some(Self { fd, stat }))
    }

    fn id(&self) -> FileId {
        FileId { dev: self.stat.st_dev, ino: self.stat.st_ino }
    }

    /// `name`: where it stands.
    fn standing(&self, name: &Path) -> Standing {
        match FileType::from_raw_mode(self.stat.st_mode) {
            FileType::Socket if self.is_held(name) => Standing::Held,
            FileType::Socket => Standing::Stale,
            FileType::RegularFile => Standing::Other("an ordinary file"),
            FileType::Directory => Standing::Other("a folder"),
            FileType::Symlink => Standing::Other("a symbolic link"),
            FileType::Fifo => Standing::Other("a FIFO"),
            FileType::CharacterDevice | FileType::BlockDevice => Standing::Other("a device"),
            FileType::Unknown => Standing::Other("something that is no socket"),
        }
    }

    /// Whether a process has bound it. A datagram socket is refused by nobody but an unbound one: by a stream socket it
    /// is told that it is of the wrong type, whether that one listens yet or not. And it takes no place in a queue. Where this
    /// process may not connect, as to a stale socket of its own that it had given to another user, the kernel's list of
    /// bound sockets tells.
    fn is_held(&self, name: &Path) -> bool {
        let asked = Socket::new(Domain::UNIX, Type::DGRAM.cloexec().nonblocking(), None)
            .and_then(|socket| socket.connect(&SockAddr::unix(self.path())?));
        match asked {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => false,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => is_listed(name),
            Ok(()) | Err(_) => true,
        }
    }

    /// A path that leads to this very file, whatever its name is by now.
    fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }
}

/// Whether the kernel knows of a bound socket with this file name (proc(5), `/proc/net/unix`). The list has paths as they were
/// bound, relative ones too, so the last part alone is compared: rather too many are taken for held than one too few.
fn is_listed(path: &Path) -> bool {
    let Ok(list) = std::fs::read("/proc/net/unix") else { return true };
    let Some(name) = path.file_name() else { return true };
    list.split(|byte| *byte == b'\n')
        .any(|line| line.split(|byte| *byte == b'/').next_back() == Some(name.as_bytes()))
}

/// Who a file is to belong to; none: whoever it belongs to.
#[derive(Clone, Copy, Debug)]
struct Owners {
    user: Option<Uid>,
    group: Option<Gid>,
}

impl Owners {
    fn of(access: &SocketAccess) -> io::Result<Self> {
        let user = access.owner.as_ref().map(|owner| id_of(owner, "user", accounts::user_id)).transpose()?;
        let group =
            access.group.as_ref().map(|group| id_of(group, "group", accounts::group_id)).transpose()?;
        Ok(Self { user: user.map(Uid::from_raw), group: group.map(Gid::from_raw) })
    }
}

fn id_of(
    account: &Account,
    kind: &'static str,
    look_up: fn(&str) -> io::Result<Option<u32>>,
) -> io::Result<u32> {
    match account {
        Account::Id(id) => Ok(*id),
        Account::Name(name) => {
            look_up(name)?.ok_or_else(|| Obstacle::Unknown { kind, name: name.clone() }.into_error())
        }
    }
}

/// Sets the rights of the file, if it is still that file. In an order in which nobody gets in who may not: closed to all
/// others first, and given away last, since a file of somebody else cannot be changed any more.
fn set_rights(path: &Path, file: FileId, mode: u32, owners: Owners) -> io::Result<()> {
    let pin = Pin::at(path)?.filter(|pin| pin.id() == file);
    let pin = pin.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the socket's file is gone"))?;
    let (user, group) = (Uid::from_raw(pin.stat.st_uid), Gid::from_raw(pin.stat.st_gid));
    let (new_user, new_group) = (owners.user.unwrap_or(user), owners.group.unwrap_or(group));
    let chmod = |mode: u32| rustix::fs::chmod(pin.path(), Mode::from_raw_mode(mode));
    let is_same_owners = (new_user, new_group) == (user, group);
    if is_same_owners && chmod(mode).is_ok() {
        return Ok(());
    }
    let own = rustix::process::geteuid();
    if user != own {
        give(&pin.fd, Some(own), None)?;
    }
    chmod(mode & CLOSED)?;
    if new_group != group {
        give(&pin.fd, None, Some(new_group))?;
    }
    chmod(mode)?;
    if new_user != own { give(&pin.fd, Some(new_user), None) } else { Ok(()) }
}

fn give(file: &OwnedFd, user: Option<Uid>, group: Option<Gid>) -> io::Result<()> {
    let given = rustix::fs::chownat(file, "", user, group, AtFlags::EMPTY_PATH);
    given.map_err(|error| match (error, user, group) {
        (Errno::PERM, Some(user), _) => Obstacle::NotAllowed { kind: "user", id: user.as_raw() }.into_error(),
        (Errno::PERM, None, Some(group)) => {
            Obstacle::NotAllowed { kind: "group", id: group.as_raw() }.into_error()
        }
        (error, _, _) => error.into(),
    })
}

/// The group that the kernel gives to a new file beside `path`.
fn group_of_new_files(path: &Path) -> Gid {
    let folder = path.parent().and_then(|folder| std::fs::metadata(folder).ok());
    let of_folder =
        folder.filter(|folder| folder.mode() & SETGID != 0).map(|folder| Gid::from_raw(folder.gid()));
    of_folder.unwrap_or_else(rustix::process::getegid)
}

#[cfg(test)]
mod tests;
