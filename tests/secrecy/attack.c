/* Tries to get at process PID in every way the kernel knows, and says which worked; changes nothing.
 *   attack PID [signal] */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kcmp.h>
#include <linux/perf_event.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

static void won(const char *how) { printf("WON %s\n", how); fflush(stdout); }

static void try_file(int pid, const char *name) {
    char path[256], byte;
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    /* The first page of memory can be read by nobody: that mem opens is enough. */
    if (!strcmp(name, "mem") || read(fd, &byte, 1) == 1) won(name);
    close(fd);
}

static void try_link(int pid, const char *name) {
    char path[256], target[256];
    snprintf(path, sizeof path, "/proc/%d/%s", pid, name);
    if (readlink(path, target, sizeof target) > 0) won(name);
}

/* In a child: what works changes the process that does it. */
static void try_entering(int pidfd, int flags, const char *name) {
    pid_t child = fork();
    if (!child) _exit(setns(pidfd, flags) == 0 ? 0 : 1);
    int status;
    if (waitpid(child, &status, 0) == child && WIFEXITED(status) && !WEXITSTATUS(status)) won(name);
}

int main(int argc, char **argv) {
    int pid = atoi(argv[1]);
    const char *files[] = {"environ", "mem", "maps", "smaps", "auxv", "stack", "syscall", "io", "numa_maps", "pagemap"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) try_file(pid, files[i]);
    const char *links[] = {"root", "cwd", "exe", "fd/0", "fd/3", "ns/mnt", "ns/user", "ns/pid"};
    for (size_t i = 0; i < sizeof links / sizeof *links; i++) try_link(pid, links[i]);

    char path[64];
    snprintf(path, sizeof path, "/proc/%d/map_files", pid);
    DIR *maps = opendir(path);
    struct dirent *entry;
    while (maps && (entry = readdir(maps)))
        if (entry->d_name[0] != '.') { won("map_files"); break; }

    if (ptrace(PTRACE_SEIZE, pid, 0, 0) == 0) { won("ptrace"); ptrace(PTRACE_DETACH, pid, 0, 0); }
    char byte;
    struct iovec here = {&byte, 1}, there = {(void *)16, 1};
    if (process_vm_readv(pid, &here, 1, &there, 1, 0) >= 0 || errno == EFAULT) won("process_vm_readv");
    if (process_vm_writev(pid, &here, 1, &there, 1, 0) >= 0 || errno == EFAULT) won("process_vm_writev");
    if (syscall(SYS_kcmp, pid, getpid(), KCMP_FILES, 0, 0) >= 0) won("kcmp");
    struct perf_event_attr event = {.type = PERF_TYPE_SOFTWARE, .size = sizeof event, .exclude_kernel = 1};
    if (syscall(SYS_perf_event_open, &event, pid, -1, -1, 0) >= 0) won("perf_event_open");

    int pidfd = syscall(SYS_pidfd_open, pid, 0);
    if (pidfd >= 0) {
        for (int fd = 0; fd < 64; fd++)
            if (syscall(SYS_pidfd_getfd, pidfd, fd, 0) >= 0) { won("pidfd_getfd"); break; }
        try_entering(pidfd, CLONE_NEWNS, "setns mnt");
        try_entering(pidfd, CLONE_NEWUSER, "setns user");
        try_entering(pidfd, CLONE_NEWPID, "setns pid");
    }
    if (argc > 2) {
        struct rlimit limit;
        if (kill(pid, 0) == 0) won("kill");
        if (prlimit(pid, RLIMIT_CPU, 0, &limit) == 0) won("prlimit");
        if (sched_setscheduler(pid, SCHED_OTHER, &(struct sched_param){0}) == 0) won("sched_setscheduler");
    }
    /* Around the process: the kernel's memory, and what the kernel would start for others. */
    const char *machine[] = {"/dev/mem", "/proc/kcore"};
    for (size_t i = 0; i < 2; i++) {
        int fd = open(machine[i], O_RDONLY);
        if (fd >= 0 && read(fd, &byte, 1) == 1) won(machine[i]);
    }
    const char *kernel[] = {"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger"};
    for (size_t i = 0; i < 3; i++)
        if (open(kernel[i], O_WRONLY | O_CLOEXEC) >= 0) won(kernel[i]);
    puts("done");
    return 0;
}
