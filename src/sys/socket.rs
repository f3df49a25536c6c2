//! Descriptors over Unix sockets.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors that come with one message here.
pub const MOST: usize = 3;

/// Sends `bytes`, and `descriptors` with the first of them; answers how many bytes went.
pub fn send(socket: impl AsFd, bytes: &[u8], descriptors: &[RawFd]) -> io::Result<usize> {
    let rights = [ControlMessage::ScmRights(descriptors)];
    let messages = if descriptors.is_empty() { &rights[..0] } else { &rights[..] };
    let slices = [IoSlice::new(bytes)];
    Ok(sendmsg::<()>(socket.as_fd().as_raw_fd(), &slices, messages, MsgFlags::MSG_NOSIGNAL, None)?)
}

/// Receives bytes into `buffer`, and the descriptors that came with them, close-on-exec. 0 bytes: the other end is gone.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = cmsg_space!([RawFd; MOST]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut slices, Some(&mut space), flags)?;
    let rights = message.cmsgs()?.filter_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    // SAFETY: the kernel has just made these descriptors for this process; nobody else knows them. nix returns numbers
    // because it cannot know who closes them.
    let descriptors = rights.flatten().map(|descriptor| unsafe { OwnedFd::from_raw_fd(descriptor) }).collect();
    Ok((message.bytes, descriptors))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn descriptors_arrive_with_the_bytes() {
        let (near, far) = UnixStream::pair().expect("socketpair");
        let (mut reader, writer) = std::io::pipe().expect("pipe");
        assert_eq!(send(&near, b"line\n", &[writer.as_raw_fd()]).expect("sent"), 5);
        drop(writer);
        let mut buffer = [0; 16];
        let (bytes, mut descriptors) = receive(&far, &mut buffer).expect("received");
        assert_eq!((&buffer[..bytes], descriptors.len()), (&b"line\n"[..], 1));
        std::fs::File::from(descriptors.remove(0)).write_all(b"through").expect("written");
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("read");
        assert_eq!(text, "through");
        assert_eq!(send(&near, b"x", &[]).expect("sent"), 1);
        assert!(receive(&far, &mut buffer).expect("received").1.is_empty());
    }
}
