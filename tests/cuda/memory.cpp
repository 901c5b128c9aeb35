/* tests/cuda/memory.cpp - memory of the GPU, registered host memory, memory of other processes.
 *
 * A piece of the GPU's memory is a file in memory of its own, so that other processes can map it by
 * /proc/PID/fd; it ends where a page ends that nobody may touch, and begins as NaN. What is freed
 * is unmapped. Registered ranges must not overlap. */
#include "standin.h"

#include <cstdio>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE_BYTES 4096u
#define ALIGNMENT 256u
#define MEMORY_BYTES ((size_t)2 << 30)

namespace {

struct piece {
    size_t size_bytes, mapped_bytes; /* with the page behind */
    char *mapped;
    int file;                        /* -1: another process's */
    unsigned use_count;
    cudaIpcMemHandle_t handle;       /* of another process's */
};

std::mutex lock; /* guards what follows */
std::map<const char *, piece> pieces;
std::map<const char *, size_t> registered;
size_t used_bytes;

struct shared_piece { /* what a handle says */
    int pid, file;
    size_t size_bytes;
};

/* The size rounded up, so that memory that ends with a page begins aligned. */
size_t round_up(size_t size_bytes, size_t to)
{
    return (size_bytes + to - 1) / to * to;
}

bool map_piece(piece *piece, int file)
{
    const size_t whole = round_up(piece->size_bytes, PAGE_BYTES);
    void *mapped = mmap(nullptr, whole + PAGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (mapped == MAP_FAILED)
        return false;
    if (mmap(mapped, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) ==
        MAP_FAILED) {
        (void)munmap(mapped, whole + PAGE_BYTES);
        return false;
    }
    piece->mapped = (char *)mapped;
    piece->mapped_bytes = whole + PAGE_BYTES;
    return true;
}

char *begin_of(const piece &piece)
{
    return piece.mapped + piece.mapped_bytes - PAGE_BYTES - round_up(piece.size_bytes, ALIGNMENT);
}

/* The last that begins at or below; or the end. */
template <typename map> typename map::const_iterator below(const map &all, const void *memory)
{
    auto at = all.upper_bound((const char *)memory);

    return at == all.begin() ? all.end() : --at;
}

} /* namespace */

cudaError_t cudaMemGetInfo(size_t *free_out, size_t *total_out)
{
    const std::lock_guard<std::mutex> guard(lock);

    *total_out = MEMORY_BYTES;
    *free_out = MEMORY_BYTES - used_bytes;
    return standin_enter("cudaMemGetInfo");
}

cudaError_t cudaMalloc(void **memory_out, size_t size_bytes)
{
    const std::lock_guard<std::mutex> guard(lock);
    const cudaError_t code = standin_enter("cudaMalloc");
    piece piece = {};

    if (code != cudaSuccess)
        return code;
    piece.size_bytes = size_bytes;
    if (used_bytes + size_bytes > MEMORY_BYTES)
        return cudaErrorMemoryAllocation;
    piece.file = memfd_create("cuda", MFD_CLOEXEC);
    if (piece.file < 0)
        return cudaErrorMemoryAllocation;
    if (ftruncate(piece.file, (off_t)round_up(size_bytes, PAGE_BYTES)) != 0 ||
        !map_piece(&piece, piece.file)) {
        (void)close(piece.file);
        return cudaErrorMemoryAllocation;
    }
    std::memset(begin_of(piece), 0xff, size_bytes);
    used_bytes += size_bytes;
    *memory_out = begin_of(piece);
    pieces[begin_of(piece)] = piece;
    standin_count("live_blocks", 1);
    return cudaSuccess;
}

cudaError_t cudaFree(void *memory)
{
    const std::lock_guard<std::mutex> guard(lock);
    const auto at = pieces.find((const char *)memory);

    if (memory == nullptr)
        return cudaSuccess;
    if (at == pieces.end() || at->second.file < 0)
        return cudaErrorInvalidValue;
    used_bytes -= at->second.size_bytes;
    (void)munmap(at->second.mapped, at->second.mapped_bytes);
    (void)close(at->second.file);
    pieces.erase(at);
    standin_count("live_blocks", -1);
    return cudaSuccess;
}

bool standin_is_device(const void *memory, size_t size_bytes)
{
    const std::lock_guard<std::mutex> guard(lock);
    const auto at = below(pieces, memory);

    return at != pieces.end() && (const char *)memory + size_bytes <=
                                     at->first + at->second.size_bytes;
}

bool standin_is_host(const void *memory, size_t size_bytes)
{
    const std::lock_guard<std::mutex> guard(lock);
    const auto at = below(pieces, (const char *)memory + size_bytes - 1);

    return at == pieces.end() || at->first + at->second.size_bytes <= (const char *)memory;
}

/* ---- registered ---- */

enum standin_pinned standin_pinned(const void *memory, size_t size_bytes)
{
    const std::lock_guard<std::mutex> guard(lock);
    const char *end = (const char *)memory + size_bytes;
    const auto at = below(registered, end - 1);

    if (at == registered.end() || at->first + at->second <= (const char *)memory)
        return STANDIN_PAGEABLE;
    return at->first <= (const char *)memory && end <= at->first + at->second ? STANDIN_PINNED
                                                                              : STANDIN_MIXED;
}

cudaError_t cudaHostRegister(void *memory, size_t size_bytes, unsigned flags)
{
    const cudaError_t code = standin_enter("cudaHostRegister");

    (void)flags;
    if (code != cudaSuccess)
        return code;
    if (standin_pinned(memory, size_bytes) != STANDIN_PAGEABLE)
        return cudaErrorHostMemoryAlreadyRegistered;
    const std::lock_guard<std::mutex> guard(lock);
    registered[(const char *)memory] = size_bytes;
    standin_count("live_pinned", 1);
    return cudaSuccess;
}

cudaError_t cudaHostUnregister(void *memory)
{
    const std::lock_guard<std::mutex> guard(lock);

    if (registered.erase((const char *)memory) == 0)
        return cudaErrorHostMemoryNotRegistered;
    standin_count("live_pinned", -1);
    return cudaSuccess;
}

/* ---- other processes ---- */

cudaError_t cudaIpcGetMemHandle(cudaIpcMemHandle_t *handle_out, void *memory)
{
    const std::lock_guard<std::mutex> guard(lock);
    const auto at = pieces.find((const char *)memory);
    shared_piece shared = {};

    if (at == pieces.end() || at->second.file < 0)
        return cudaErrorInvalidValue;
    shared.pid = getpid();
    shared.file = at->second.file;
    shared.size_bytes = at->second.size_bytes;
    std::memset(handle_out, 0, sizeof(*handle_out));
    std::memcpy(handle_out, &shared, sizeof(shared));
    return cudaSuccess;
}

/* Like CUDA's, it refuses the process's own. */
cudaError_t cudaIpcOpenMemHandle(void **memory_out, cudaIpcMemHandle_t handle, unsigned flags)
{
    const std::lock_guard<std::mutex> guard(lock);
    shared_piece shared;
    piece piece = {};
    char path[64];
    int file;
    bool mapped;

    (void)flags;
    std::memcpy(&shared, &handle, sizeof(shared));
    for (auto &one : pieces)
        if (one.second.file < 0 && std::memcmp(&one.second.handle, &handle, sizeof(handle)) == 0) {
            one.second.use_count++;
            *memory_out = (void *)one.first;
            return cudaSuccess;
        }
    if (shared.pid == getpid() || shared.size_bytes == 0 || shared.size_bytes > MEMORY_BYTES)
        return cudaErrorInvalidValue;
    (void)snprintf(path, sizeof(path), "/proc/%d/fd/%d", shared.pid, shared.file);
    file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0)
        return cudaErrorInvalidResourceHandle;
    piece.size_bytes = shared.size_bytes;
    piece.handle = handle;
    piece.use_count = 1;
    piece.file = -1;
    mapped = map_piece(&piece, file);
    (void)close(file);
    if (!mapped)
        return cudaErrorMemoryAllocation;
    *memory_out = begin_of(piece);
    pieces[begin_of(piece)] = piece;
    standin_count("live_peers", 1);
    return cudaSuccess;
}

cudaError_t cudaIpcCloseMemHandle(void *memory)
{
    const std::lock_guard<std::mutex> guard(lock);
    const auto at = pieces.find((const char *)memory);

    if (at == pieces.end() || at->second.file >= 0)
        return cudaErrorInvalidValue;
    if (--at->second.use_count > 0)
        return cudaSuccess;
    (void)munmap(at->second.mapped, at->second.mapped_bytes);
    pieces.erase(at);
    standin_count("live_peers", -1);
    return cudaSuccess;
}
