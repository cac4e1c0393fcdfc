/* Counts what a process does to the files of a trail, and kills it at one of those calls: before it, after it, or amid a write. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static const char *dir;
static char how;
static long left;

__attribute__((constructor)) static void begin(void)
{
    dir = getenv("KILL_DIR");
    left = dir ? atol(getenv("KILL_AT")) : 0;
    how = dir ? *getenv("KILL_HOW") : 0;
}

static int is_at(const char *path)
{
    return dir && strncmp(path, dir, strlen(dir)) == 0 && __sync_sub_and_fetch(&left, 1) == 0;
}

static int is_at_fd(int fd)
{
    char link[64], path[PATH_MAX];
    if (!dir) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_at(path);
}

static void die(void) { kill(getpid(), SIGKILL); pause(); }

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CALL(is, call)                                                                                                 \
    int now = is;                                                                                                      \
    if (now && how == 'b') die();                                                                                      \
    __typeof__(call) result = call;                                                                                    \
    if (now) die();                                                                                                    \
    return result

int fdatasync(int fd) { CALL(is_at_fd(fd), REAL(fdatasync)(fd)); }
int fsync(int fd) { CALL(is_at_fd(fd), REAL(fsync)(fd)); }
int ftruncate64(int fd, off64_t length) { CALL(is_at_fd(fd), REAL(ftruncate64)(fd, length)); }
int rename(const char *from, const char *to) { CALL(is_at(to), REAL(rename)(from, to)); }
int unlink(const char *path) { CALL(is_at(path), REAL(unlink)(path)); }

ssize_t write(int fd, const void *bytes, size_t count)
{
    CALL(is_at_fd(fd), REAL(write)(fd, bytes, now && how == 't' ? count / 2 : count));
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at)
{
    CALL(is_at_fd(fd), REAL(pwrite64)(fd, bytes, now && how == 't' ? count / 2 : count, at));
}
