/* Preloaded into an nginx: some of its allocations fail, as a test says in a file that both have mapped.
 *
 * SCARCE names the file, which begins with a `struct order`. Allocations that count are numbered from 1 while `whose` is not 0;
 * those from `first` to `last` fail. So a test that counts one request knows how many there are, and can let each fail. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* glibc's malloc itself. */
extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t number, size_t size);
extern void *__libc_realloc(void *old, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

enum { NOBODYS, THE_MODULES, EVERYBODYS };

static volatile struct order {
    uint32_t whose, first, last, counted, failed;
} *order;

__attribute__((constructor)) static void map(void)
{
    const char *name = getenv("SCARCE");
    int file = name == NULL ? -1 : open(name, O_RDWR);
    void *memory;

    if (file != -1) {
        memory = mmap(NULL, sizeof(*order), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        close(file);
        if (memory != MAP_FAILED) {
            order = memory;
        }
    }
}

static int is_the_modules(void *caller)
{
    Dl_info info;

    return dladdr(caller, &info) != 0 && info.dli_fname != NULL && strstr(info.dli_fname, "/module.so") != NULL;
}

static int fails(void *caller)
{
    uint32_t number;

    if (order == NULL || order->whose == NOBODYS || (order->whose == THE_MODULES && !is_the_modules(caller))) {
        return 0;
    }
    number = ++order->counted;
    if (number < order->first || number > order->last) {
        return 0;
    }
    order->failed++;
    return 1;
}

#define GIVE(memory) \
    do { \
        if (fails(__builtin_return_address(0))) { \
            errno = ENOMEM; \
            return NULL; \
        } \
        return memory; \
    } while (0)

void *malloc(size_t size) { GIVE(__libc_malloc(size)); }

void *calloc(size_t number, size_t size) { GIVE(__libc_calloc(number, size)); }

void *realloc(void *old, size_t size) { GIVE(__libc_realloc(old, size)); }

void *memalign(size_t alignment, size_t size) { GIVE(__libc_memalign(alignment, size)); }

void *aligned_alloc(size_t alignment, size_t size) { GIVE(__libc_memalign(alignment, size)); }

int posix_memalign(void **memory, size_t alignment, size_t size)
{
    void *found;

    if (fails(__builtin_return_address(0)) || (found = __libc_memalign(alignment, size)) == NULL) {
        return ENOMEM;
    }
    *memory = found;
    return 0;
}
