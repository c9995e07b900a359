/* NCCL between emulated GPUs: a file in shared memory has a mailbox from every rank to every other. Calls are queued
 * on their stream, and sums are added in the order of the ranks. */
#include <atomic>
#include <memory>
#include <vector>

#include "nccl.h"  // after them, for it defines names that they use

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

/* A ring of bytes with one writer and one reader. It is large enough for most messages of the tests, so a send seldom
 * waits.
 */
struct Mailbox {
    enum { BYTES = 8 << 20 };
    std::atomic<uint64_t> written, read;
    char data[BYTES];
};

struct ncclComm {
    int rank, ranks;
    Mailbox *boxes;  // [ranks, ranks]: from, to
    char name[128];
    std::atomic<bool> aborted;
};

static Mailbox *box(ncclComm *c, int from, int to) { return &c->boxes[from * c->ranks + to]; }

const char *ncclGetErrorString(ncclResult_t result) {
    return result == ncclSuccess       ? "no error"
           : result == ncclSystemError ? "unhandled system error"
                                       : "invalid argument";
}

ncclResult_t ncclGetUniqueId(ncclUniqueId *id) {
    uint64_t number;
    memset(id, 0, sizeof *id);
    if (getrandom(&number, sizeof number, 0) != sizeof number) return ncclSystemError;
    snprintf(id->internal, sizeof id->internal, "/emulated-nccl-%016llx", (unsigned long long)number);
    return ncclSuccess;
}

/* Maps the file and returns when all ranks have mapped it, so that its name can be removed. */
ncclResult_t ncclCommInitRank(ncclComm_t *comm, int ranks, ncclUniqueId id, int rank) {
    size_t boxes = (size_t)ranks * (size_t)ranks * sizeof(Mailbox), bytes = boxes + sizeof(std::atomic<int>);
    int fd = shm_open(id.internal, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (rank < 0 || rank >= ranks || !*id.internal) return ncclInvalidArgument;
    if (fd < 0 || ftruncate(fd, (off_t)bytes)) return ncclSystemError;  // new bytes are zero
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (memory == MAP_FAILED) return ncclSystemError;
    std::atomic<int> *arrived = (std::atomic<int> *)((char *)memory + boxes);
    ++*arrived;
    while (*arrived < ranks) usleep(100);
    shm_unlink(id.internal);
    *comm = new ncclComm{rank, ranks, (Mailbox *)memory, {}, {}};
    return ncclSuccess;
}

ncclResult_t ncclCommDestroy(ncclComm_t c) {
    munmap(c->boxes, (size_t)c->ranks * (size_t)c->ranks * sizeof(Mailbox) + sizeof(std::atomic<int>));
    delete c;
    return ncclSuccess;
}

/* Does not free the group, because work that is queued on a stream may still use it. */
ncclResult_t ncclCommAbort(ncclComm_t c) {
    static std::vector<ncclComm_t> ended;
    ended.push_back(c);
    return c->aborted = true, ncclSuccess;
}

/* ---- moving ---- */

struct Part {
    bool sending;
    int rank;
    char *data;
    size_t bytes;
};

/* Moves as many bytes as possible now. */
static void advance(ncclComm *c, Part *p) {
    Mailbox *b = p->sending ? box(c, c->rank, p->rank) : box(c, p->rank, c->rank);
    uint64_t written = b->written, read = b->read;
    uint64_t at = (p->sending ? written : read) % Mailbox::BYTES;
    uint64_t n = p->sending ? Mailbox::BYTES - (written - read) : written - read;
    n = std::min({n, (uint64_t)p->bytes, Mailbox::BYTES - at});
    if (!n) return;
    if (p->sending)
        memcpy(b->data + at, p->data, n), b->written = written + n;
    else
        memcpy(p->data, b->data + at, n), b->read = read + n;
    p->data += n;
    p->bytes -= n;
}

/* True when all parts have been moved. */
static bool moved(ncclComm *c, std::vector<Part> &parts) {
    bool all = true;
    for (Part &p : parts) {
        if (p.bytes) advance(c, &p);
        all = all && !p.bytes;
    }
    return all;
}

/* Queues a transfer: `begin` says what to move, and `end` uses what has arrived. */
static ncclResult_t exchange(ncclComm *c, cudaStream_t s, std::function<void(std::vector<Part> &)> begin,
                             std::function<void()> end) {
    struct State {
        std::vector<Part> parts;
        bool begun;
    };
    auto state = std::make_shared<State>();
    emulation::stream_attempt(s, [=]() {
        if (c->aborted) return true;
        if (!state->begun) begin(state->parts), state->begun = true;
        if (!moved(c, state->parts)) return false;
        if (end) end();
        return true;
    });
    return ncclSuccess;
}

static size_t size_of(ncclDataType_t type) { return type == ncclFloat32 ? 4 : 1; }

/* The parts to and from every other rank: `mine` goes to all of them, or, with mine_step, a piece of it to each. */
static void to_and_from_all(ncclComm *c, std::vector<Part> &parts, const char *mine, size_t mine_step, char *theirs,
                            size_t bytes) {
    for (int r = 0; r < c->ranks; r++) {
        if (r == c->rank) continue;
        parts.push_back({true, r, (char *)mine + (size_t)r * mine_step, bytes});
        parts.push_back({false, r, theirs + (size_t)r * bytes, bytes});
    }
}

/* sum [n] = the sum over ranks of all [ranks, n], in the order of the ranks. */
static void add_up(float *sum, const std::vector<float> &all, size_t n, int ranks) {
    memcpy(sum, all.data(), n * sizeof *sum);
    for (size_t r = 1; r < (size_t)ranks; r++)
        for (size_t i = 0; i < n; i++) sum[i] += all[r * n + i];
}

/* ---- calls ---- */

/* step: elements between one rank's part of `from` and the next rank's. */
static ncclResult_t reduce(const void *from, void *to, size_t n, size_t step, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t s) {
    if (type != ncclFloat32) return ncclInvalidArgument;
    auto all = std::make_shared<std::vector<float>>((size_t)c->ranks * n);
    auto begin = [=](std::vector<Part> &parts) {
        memcpy(all->data() + (size_t)c->rank * n, (const float *)from + (size_t)c->rank * step, n * sizeof(float));
        to_and_from_all(c, parts, (const char *)from, step * sizeof(float), (char *)all->data(), n * sizeof(float));
    };
    return exchange(c, s, begin, [=]() { add_up((float *)to, *all, n, c->ranks); });
}

ncclResult_t ncclReduceScatter(const void *from, void *to, size_t piece, ncclDataType_t type, ncclRedOp_t,
                               ncclComm_t c, cudaStream_t s) {
    return reduce(from, to, piece, piece, type, c, s);
}

ncclResult_t ncclAllReduce(const void *from, void *to, size_t n, ncclDataType_t type, ncclRedOp_t, ncclComm_t c,
                           cudaStream_t s) {
    return reduce(from, to, n, 0, type, c, s);
}

ncclResult_t ncclAllGather(const void *from, void *to, size_t piece, ncclDataType_t type, ncclComm_t c,
                           cudaStream_t s) {
    size_t bytes = piece * size_of(type);
    auto begin = [=](std::vector<Part> &parts) {
        memmove((char *)to + (size_t)c->rank * bytes, from, bytes);
        to_and_from_all(c, parts, (const char *)from, 0, (char *)to, bytes);
    };
    return exchange(c, s, begin, NULL);
}
