/* Preloaded into an nginx: while a file exists, the module gets no memory.
 *
 * FLAG is the file's name. Who asks is told by the return address: nginx's own allocations and libc's are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __GLIBC__
/* Its malloc itself, by the names that only glibc has. */
extern void *__libc_malloc(size_t size);
extern void *__libc_realloc(void *old, size_t size);
#define NEXT(name) __libc_##name
#else
/* musl's dlsym() allocates nothing. */
#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

/* Where malloc is not musl's own, musl's aligned_alloc() gives memory only if somebody stands before that as well. */
void *aligned_alloc(size_t alignment, size_t size)
{
    return NEXT(aligned_alloc)(alignment, size);
}
#endif

static int refuses(void *caller)
{
    Dl_info info;

    return access(FLAG, F_OK) == 0 && dladdr(caller, &info) != 0 && info.dli_fname != NULL
           && strstr(info.dli_fname, "matrix_user_hash") != NULL;
}

void *malloc(size_t size)
{
    if (refuses(__builtin_return_address(0))) {
        errno = ENOMEM;
        return NULL;
    }
    return NEXT(malloc)(size);
}

void *realloc(void *old, size_t size)
{
    if (refuses(__builtin_return_address(0))) {
        errno = ENOMEM;
        return NULL;
    }
    return NEXT(realloc)(old, size);
}
