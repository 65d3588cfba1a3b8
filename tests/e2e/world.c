// Stands between a program and the C library (LD_PRELOAD), and lets calls go
// wrong while a file of that name is in the folder $SANDGATE_WORLD. What is in
// the file is the error's number, or a number of seconds.
//
//   write   writing to, making and renaming files of the state folder fails
//   sync    syncing them fails
//   stall   syncing them takes until the file is gone
//   clock   the wall clock is off by so many seconds
//   names   no name is resolved

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

// The number in a file of the folder; 0 when there is none.
static long fault(const char *name) {
    const char *folder = getenv("SANDGATE_WORLD");
    if (!folder) return 0;
    char path[4096], text[32] = "";
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int saved = errno, file = NEXT(open64)(path, O_RDONLY);
    if (file < 0) {
        errno = saved;
        return 0;
    }
    ssize_t size = read(file, text, sizeof text - 1);
    close(file);
    errno = saved;
    return size > 0 ? atol(text) : 0;
}

static int is_state(const char *path) {
    return strstr(path, "/sandgate-state/") != NULL || strncmp(path, "sandgate-state/", 15) == 0;
}

static int is_state_file(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size <= 0) return 0;
    path[size] = 0;
    return is_state(path);
}

static int fails(const char *name, int is_concerned) {
    long error = is_concerned ? fault(name) : 0;
    if (error) errno = (int)error;
    return error != 0;
}

ssize_t write(int file, const void *bytes, size_t size) {
    if (fault("write") && fails("write", is_state_file(file))) return -1;
    return NEXT(write)(file, bytes, size);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && fails("write", is_state(path))) return -1;
    return NEXT(open64)(path, flags, mode);
}

int rename(const char *from, const char *to) {
    if (fails("write", is_state(to))) return -1;
    return NEXT(rename)(from, to);
}

static int syncs(int file) {
    while (is_state_file(file) && fault("stall")) usleep(10000);
    return fails("sync", is_state_file(file));
}

int fdatasync(int file) {
    return syncs(file) ? -1 : NEXT(fdatasync)(file);
}

int fsync(int file) {
    return syncs(file) ? -1 : NEXT(fsync)(file);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = NEXT(clock_gettime)(clock, time);
    if (clock == CLOCK_REALTIME && result == 0) time->tv_sec += fault("clock");
    return result;
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    if (fault("names")) return EAI_AGAIN;
    return NEXT(getaddrinfo)(name, service, hints, found);
}
