//! Which right is missing for private namespaces, and who can give it.

use std::fs;
use std::path::Path;

/// What forbids namespaces here, as far as a process can see.
#[derive(Clone, Copy, Debug, Default)]
struct Surroundings {
    container: bool,
    seccomp: bool,
    /// `user.max_user_namespaces=0`
    none_allowed: bool,
    /// `kernel.unprivileged_userns_clone=0`, of Debian
    root_only: bool,
    /// `kernel.apparmor_restrict_unprivileged_userns=1`, of Ubuntu
    apparmor: bool,
}

/// What to do about it, for people.
pub fn remedy() -> String {
    Surroundings::look().remedy()
}

impl Surroundings {
    fn look() -> Self {
        let reads = |path: &str, value: &str| fs::read_to_string(path).is_ok_and(|text| text.trim() == value);
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            container: is_container(),
            seccomp: status.lines().any(|line| line == "Seccomp:\t2"),
            none_allowed: reads("/proc/sys/user/max_user_namespaces", "0"),
            root_only: reads("/proc/sys/kernel/unprivileged_userns_clone", "0"),
            apparmor: reads("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        }
    }

    fn remedy(self) -> String {
        let switches = [
            (self.none_allowed, "sysctl user.max_user_namespaces=15000"),
            (self.root_only, "sysctl kernel.unprivileged_userns_clone=1"),
            (self.apparmor, "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
        ];
        let mut ways = Vec::new();
        if self.container {
            ways.push(
                "start this container with `--device /dev/fuse --cap-add SYS_ADMIN`, and on a host with AppArmor with \
                 `--security-opt apparmor=unconfined`"
                    .to_owned(),
            );
        }
        let off: Vec<_> = switches.iter().filter(|(off, _)| *off).map(|(_, how)| format!("`{how}`")).collect();
        match (off.is_empty(), self.container, self.seccomp) {
            (false, ..) => ways.push(format!("allow user namespaces, as root of the host: {}", off.join(", "))),
            (_, true, true) => ways.push(
                "without any capability, but with unshare(2) and mount(2) let through: `--device /dev/fuse --security-opt \
                 seccomp=deploy/docker/seccomp.json`, or `seccomp=unconfined`"
                    .to_owned(),
            ),
            (_, false, true) => ways.push(
                "let the seccomp filter of whatever started this (a service manager: RestrictNamespaces=, \
                 SystemCallFilter=) pass unshare(2) and mount(2)"
                    .to_owned(),
            ),
            _ => ways.push("allow user namespaces (see user_namespaces(7) and the switches of this host)".to_owned()),
        }
        if !self.container {
            ways.push("run as root".to_owned());
        }
        format!("{}; `runseal doctor` shows what is missing", ways.join("; or "))
    }
}

/// As Docker and Podman mark containers, and others through the variable of systemd's container interface.
fn is_container() -> bool {
    Path::new("/.dockerenv").exists()
        || Path::new("/run/.containerenv").exists()
        || std::env::var_os("container").is_some()
        || std::env::var_os("KUBERNETES_SERVICE_HOST").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_place_gets_the_remedy_that_helps_there() {
        let plain = Surroundings::default();
        let docker = Surroundings { container: true, seccomp: true, ..plain };
        for (place, words, others) in [
            (docker, &["--device /dev/fuse --cap-add SYS_ADMIN", "seccomp.json"][..], &["sysctl", "run as root"][..]),
            (Surroundings { none_allowed: true, ..docker }, &["--cap-add", "user.max_user"], &["seccomp.json"]),
            (Surroundings { seccomp: true, ..plain }, &["RestrictNamespaces=", "run as root"], &["--cap-add"]),
            (Surroundings { none_allowed: true, ..plain }, &["sysctl user.max_user_namespaces"], &["apparmor"]),
            (Surroundings { root_only: true, ..plain }, &["unprivileged_userns_clone=1"], &["max_user", "--cap"]),
            (Surroundings { apparmor: true, ..plain }, &["apparmor_restrict_unprivileged_userns=0"], &["max_user"]),
            (plain, &["user_namespaces(7)", "run as root"], &["sysctl", "--cap-add"]),
        ] {
            let text = place.remedy();
            assert!(words.iter().all(|word| text.contains(word)), "{place:?}: {text}");
            assert!(!others.iter().any(|other| text.contains(other)), "{place:?}: {text}");
        }
    }
}
