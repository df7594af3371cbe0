/* Preloaded into a process, makes each of its syncs take longer: a disk of the speed that one asks for. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static void delay(void)
{
    const char *microseconds = getenv("SLOWSYNC_MICROSECONDS");
    if (microseconds)
        usleep((useconds_t)atoi(microseconds));
}

int fsync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    delay();
    return real(fd);
}

int fdatasync(int fd)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    delay();
    return real(fd);
}
