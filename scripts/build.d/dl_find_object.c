/*
 * What Debian's libgcc_eh.a asks of its libc, for a libc that lacks it.
 *
 * That archive is compiled for glibc, whose _dl_find_object (glibc manual, "Dynamic Linker Introspection") tells the
 * unwinder which object holds an address and where its .eh_frame_hdr is. musl has the older dl_iterate_phdr only.
 * Used by scripts/build musl; in an Alpine image the distribution's own libgcc_s needs none of this.
 */
#define _GNU_SOURCE
#include <link.h>
#include <stddef.h>

/* As in glibc's <bits/dl_find_object.h> for machines without a data base register in .eh_frame, such as x86-64. */
struct dl_find_object {
    unsigned long long flags;
    void *map_start;
    void *map_end;
    struct link_map *link_map;
    void *eh_frame;
    unsigned long long reserved[7];
};

struct search {
    ElfW(Addr) address;
    struct dl_find_object *found;
};

static int look(struct dl_phdr_info *info, size_t size, void *data)
{
    struct search *search = data;
    ElfW(Addr) start = 0, end = 0, eh_frame = 0;

    (void) size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        ElfW(Addr) at = info->dlpi_addr + header->p_vaddr;

        if (header->p_type == PT_LOAD && search->address >= at && search->address < at + header->p_memsz) {
            start = at;
            end = at + header->p_memsz;
        } else if (header->p_type == PT_GNU_EH_FRAME) {
            eh_frame = at;
        }
    }
    if (end == 0 || eh_frame == 0) {
        return 0;
    }
    *search->found = (struct dl_find_object) {
        .map_start = (void *) start, .map_end = (void *) end, .eh_frame = (void *) eh_frame,
    };
    return 1;
}

__attribute__((visibility("hidden")))
int _dl_find_object(void *address, struct dl_find_object *found)
{
    struct search search = { (ElfW(Addr)) address, found };

    return dl_iterate_phdr(look, &search) ? 0 : -1;
}
