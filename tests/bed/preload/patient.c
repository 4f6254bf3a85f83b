/* Preloaded into an nginx: each turn of its event loop has something to do, as in one that is busy.
 *
 * epoll_wait returns for an event, and for a timer only when none has come for 1 s. What nginx sees is what it sees in a process to
 * which requests come faster than its turns are; so nobody has to send as many, at just the right moments. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/epoll.h>

#define PATIENCE 1000

int epoll_wait(int epoll, struct epoll_event *events, int most, int timeout)
{
    static int (*real)(int, struct epoll_event *, int, int);

    if (real == NULL) {
        real = (int (*)(int, struct epoll_event *, int, int)) dlsym(RTLD_NEXT, "epoll_wait");
    }
    if (timeout > 0 && timeout < PATIENCE) {
        timeout = PATIENCE;
    }
    return real(epoll, events, most, timeout);
}
