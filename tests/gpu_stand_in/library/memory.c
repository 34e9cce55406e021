/* Memory: address space of the process that the operating system fills with zeros when it is first touched.
 *
 * Only copies from the host touch it, so a card of 79 GiB costs what the weights take. The limit is real: torch's
 * allocator meets it as it meets that of a card.
 */
#include "stand_in.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* A copy to the host of at most so many bytes gives zeros. Such a copy reads a loss, a norm or a flag, which a kernel
 * would have computed; what stands there is left over from another tensor, and as a number it may be anything. */
#define SCALAR_BYTES 64

/* ---- ranges ---- */

typedef struct {
  char *start;
  size_t bytes;
  int pinned; /* memory of the host */
} Range;

#define MOST_RANGES (1 << 16)

static Range ranges[MOST_RANGES];
static int num_ranges;
static size_t in_use;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The range that an address is in; NULL for memory of nobody here. Call it with the lock. */
static Range *range_of(const void *address) {
  const char *wanted = address;
  for (int i = 0; i < num_ranges; i++) {
    if (wanted >= ranges[i].start && wanted < ranges[i].start + ranges[i].bytes) {
      return ranges + i;
    }
  }
  return NULL;
}

static int is_pinned(const void *address) {
  pthread_mutex_lock(&lock);
  const Range *range = range_of(address);
  int pinned = range && range->pinned;
  pthread_mutex_unlock(&lock);
  return pinned;
}

/* Map a range, within the limit of the card if it is device memory. */
static cudaError_t map(void **address, size_t bytes, int pinned) {
  cudaError_t error = cudaErrorMemoryAllocation;
  pthread_mutex_lock(&lock);
  if (pinned || in_use + bytes <= card()->memory - card()->taken_by_others) {
    size_t mapped = bytes ? bytes : 1;
    /* Without reserve: the sum of all cards' memory may be more than this machine has. */
    *address = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (*address == MAP_FAILED || num_ranges == MOST_RANGES) {
      abort();
    }
    ranges[num_ranges++] = (Range){.start = *address, .bytes = mapped, .pinned = pinned};
    in_use += pinned ? 0 : mapped;
    error = cudaSuccess;
  }
  pthread_mutex_unlock(&lock);
  return error;
}

static void unmap(void *address) {
  pthread_mutex_lock(&lock);
  Range *range = range_of(address);
  if (range) {
    in_use -= range->pinned ? 0 : range->bytes;
    munmap(range->start, range->bytes);
    *range = ranges[--num_ranges];
  }
  pthread_mutex_unlock(&lock);
}

/* ---- allocation ---- */

EXPORT cudaError_t cudaMalloc(void **address, size_t bytes) {
  cudaError_t error = map(address, bytes, 0);
  if (error) {
    return failed(error);
  }
  record(ALLOCATION, "cudaMalloc", (double)bytes, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaFree(void *address) {
  if (address) {
    unmap(address);
    record(RELEASE, "cudaFree", 0, 0);
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaMallocAsync(void **address, size_t bytes, cudaStream_t stream) {
  return cudaMalloc(address, bytes);
}

EXPORT cudaError_t cudaFreeAsync(void *address, cudaStream_t stream) {
  return cudaFree(address);
}

EXPORT cudaError_t cudaHostAlloc(void **address, size_t bytes, unsigned flags) {
  record(PINNED, "cudaHostAlloc", (double)bytes, 0);
  return map(address, bytes, 1);
}

EXPORT cudaError_t cudaFreeHost(void *address) {
  unmap(address);
  return cudaSuccess;
}

SUCCEEDS(cudaHostRegister, void *address, size_t bytes, unsigned flags)
SUCCEEDS(cudaHostUnregister, void *address)

EXPORT cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  pthread_mutex_lock(&lock);
  size_t taken = in_use + card()->taken_by_others;
  pthread_mutex_unlock(&lock);
  *total = card()->memory;
  *free_bytes = *total > taken ? *total - taken : 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *attributes, const void *address) {
  memset(attributes, 0, sizeof *attributes);
  attributes->type = cudaMemoryTypeUnregistered;
  attributes->devicePointer = (void *)address;
  pthread_mutex_lock(&lock);
  const Range *range = range_of(address);
  if (range) {
    attributes->type = range->pinned ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->hostPointer = range->pinned ? (void *)address : NULL;
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

/* ---- copies ---- */

static void copy(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind) {
  switch (kind) {
  case cudaMemcpyHostToDevice:
    record(is_pinned(source) ? TO_DEVICE : TO_DEVICE_PAGEABLE, "copy", (double)bytes, 0);
    memcpy(target, source, bytes);
    break;
  case cudaMemcpyDeviceToHost:
    record(is_pinned(target) ? TO_HOST : TO_HOST_PAGEABLE, "copy", (double)bytes, 0);
    if (bytes <= SCALAR_BYTES) {
      memset(target, 0, bytes);
    } else {
      memcpy(target, source, bytes);
    }
    break;
  default: /* inside the card, where nothing is computed, nothing is copied either */
    record(ON_DEVICE, "copy", (double)bytes, 0);
  }
}

EXPORT cudaError_t cudaMemcpyAsync(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind,
                                   cudaStream_t stream) {
  copy(target, source, bytes, kind);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void *target, const void *source, size_t bytes, enum cudaMemcpyKind kind) {
  copy(target, source, bytes, kind);
  record(WAIT, "cudaMemcpy", 0, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpyPeerAsync(void *target, int to, const void *source, int from, size_t bytes,
                                       cudaStream_t stream) {
  copy(target, source, bytes, cudaMemcpyDeviceToDevice);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemset(void *address, int value, size_t bytes) {
  record(MEMSET, "memset", (double)bytes, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemsetAsync(void *address, int value, size_t bytes, cudaStream_t stream) {
  return cudaMemset(address, value, bytes);
}

/* ---- variables of the device ---- */

SUCCEEDS(cudaMemcpyToSymbol, const void *symbol, const void *source, size_t bytes, size_t offset,
         enum cudaMemcpyKind kind)

EXPORT cudaError_t cudaGetSymbolAddress(void **address, const void *symbol) {
  static char variable[4096];
  *address = variable;
  return cudaSuccess;
}
