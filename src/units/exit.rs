//! Exit statuses: the numbers of `sysexits.h` that runseal uses, and those of a shell.

/// How a process of runseal ends, unless it succeeds or passes the status of a command on. The numbers are promised to
/// users: help texts, documents and problem documents show them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Wrong command line.
    Usage = 64,
    /// A document is not as it should be: a policy with defects, a trail that was changed.
    Data = 65,
    /// An input is missing or cannot be read.
    NoInput = 66,
    /// Something the machine should offer is not there.
    Unavailable = 69,
    /// The system failed: the sealed process died, or a system call that should work did not.
    System = 71,
    /// An output cannot be created.
    CannotCreate = 73,
    /// Reading or writing failed on the way.
    Io = 74,
    /// Results were held, and nobody published them in time (`EX_TEMPFAIL`: another try may succeed).
    Unpublished = 75,
    /// No permission.
    NoPermission = 77,
    /// The machine or the command line asks for something that cannot be had together.
    Configuration = 78,
    /// The command exists but cannot be executed, as a shell says it.
    NotExecutable = 126,
    /// There is no such command, as a shell says it.
    NotFound = 127,
}

impl Exit {
    /// All of them, by number.
    pub const ALL: [Self; 12] = [
        Self::Usage,
        Self::Data,
        Self::NoInput,
        Self::Unavailable,
        Self::System,
        Self::CannotCreate,
        Self::Io,
        Self::Unpublished,
        Self::NoPermission,
        Self::Configuration,
        Self::NotExecutable,
        Self::NotFound,
    ];

    /// The number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The one with this number; a status of a command, or of a signal, is none.
    pub fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|exit| exit.number() == number)
    }

    /// The status of what a signal has ended, as a shell says it.
    pub const fn by_signal(signal: i32) -> u8 {
        128 + signal as u8
    }
}
