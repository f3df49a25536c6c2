/* Preloaded into a run: notes what the kernel gives as random bytes, and keeps the process with the key from going away
 * until the test has looked at it. $RUNSEAL_TAP is a directory:
 *   draws.PID   lengths (32 bits) and bytes of all draws of at least 32 bytes
 *   hold        while it exists, process 1 of a run waits at its very end, and says so by the file `ended`
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int file(const char *name, int number, int flags) {
    char path[4096];
    const char *folder = getenv("RUNSEAL_TAP");
    if (!folder) return -1;
    snprintf(path, sizeof path, number ? "%s/%s.%d" : "%s/%s", folder, name, number);
    return open(path, flags | O_CLOEXEC, 0600);
}

ssize_t getrandom(void *bytes, size_t length, unsigned flags) {
    ssize_t got = syscall(SYS_getrandom, bytes, length, flags);
    int fd;
    if (got >= 32 && (fd = file("draws", getpid(), O_WRONLY | O_CREAT | O_APPEND)) >= 0) {
        uint32_t count = got;
        struct iovec parts[] = {{&count, sizeof count}, {bytes, got}};
        if (writev(fd, parts, 2) < 0) _exit(99);
        close(fd);
    }
    return got;
}

__attribute__((destructor)) static void wait_at_the_end(void) {
    int fd;
    if (getpid() != 1 || (fd = file("hold", 0, O_RDONLY)) < 0) return;
    close(fd);
    close(file("ended", 0, O_WRONLY | O_CREAT));
    for (int turns = 0; turns < 6000 && (fd = file("hold", 0, O_RDONLY)) >= 0; turns++) {
        close(fd);
        usleep(10000);
    }
}
