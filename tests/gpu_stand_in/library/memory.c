/* Memory: address space of the process that the operating system fills with zeros when it is first touched.
 *
 * Only copies from the host touch it, so a card of 79 GiB costs what the weights take. The limit is real: torch's
 * allocator meets it as it meets that of a card.
 */
#include "stand_in.h"

#include <cuda.h>
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
  enum { DEVICE, PINNED_HOST, REGISTERED_HOST, RESERVED } use;
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

static int is_host(const Range *range) {
  return range->use == PINNED_HOST || range->use == REGISTERED_HOST;
}

static int is_pinned(const void *address) {
  pthread_mutex_lock(&lock);
  const Range *range = range_of(address);
  int pinned = range && is_host(range);
  pthread_mutex_unlock(&lock);
  return pinned;
}

/* Call it with the lock. */
static int fits(size_t bytes) {
  return in_use + bytes <= card()->memory - card()->taken_by_others;
}

/* Call it with the lock. */
static void remember(void *start, size_t bytes, int use) {
  if (start == MAP_FAILED || num_ranges == MOST_RANGES) {
    abort();
  }
  ranges[num_ranges++] = (Range){.start = start, .bytes = bytes, .use = use};
}

/* Map a range, within the limit of the card if it is memory of the card. */
static cudaError_t map(void **address, size_t bytes, int use) {
  cudaError_t error = cudaErrorMemoryAllocation;
  size_t mapped = bytes ? bytes : 1;
  pthread_mutex_lock(&lock);
  if (use != DEVICE || fits(mapped)) {
    /* Without reserve: the sum of all cards' memory may be more than this machine has. */
    *address = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    remember(*address, mapped, use);
    in_use += use == DEVICE ? mapped : 0;
    error = cudaSuccess;
  }
  pthread_mutex_unlock(&lock);
  return error;
}

static void unmap(void *address) {
  pthread_mutex_lock(&lock);
  Range *range = range_of(address);
  if (range) {
    in_use -= range->use == DEVICE ? range->bytes : 0;
    if (range->use != REGISTERED_HOST) {
      munmap(range->start, range->bytes);
    }
    *range = ranges[--num_ranges];
  }
  pthread_mutex_unlock(&lock);
}

/* ---- allocation ---- */

EXPORT cudaError_t cudaMalloc(void **address, size_t bytes) {
  cudaError_t error = map(address, bytes, DEVICE);
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
  return map(address, bytes, PINNED_HOST);
}

EXPORT cudaError_t cudaFreeHost(void *address) {
  unmap(address);
  return cudaSuccess;
}

/* Memory of the host's own that is locked: copies treat it as pinned. */
EXPORT cudaError_t cudaHostRegister(void *address, size_t bytes, unsigned flags) {
  record(PINNED, "cudaHostRegister", (double)bytes, 0);
  pthread_mutex_lock(&lock);
  remember(address, bytes, REGISTERED_HOST);
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

EXPORT cudaError_t cudaHostUnregister(void *address) {
  unmap(address);
  return cudaSuccess;
}

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
    attributes->type = is_host(range) ? cudaMemoryTypeHost : cudaMemoryTypeDevice;
    attributes->hostPointer = is_host(range) ? (void *)address : NULL;
  }
  pthread_mutex_unlock(&lock);
  return cudaSuccess;
}

/* ---- addresses and memory apart, by which torch's allocator grows a segment in place ---- */

EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *properties,
                                              CUmemAllocationGranularity_flags option) {
  *bytes = 2 << 20;
  return CUDA_SUCCESS;
}

/* Addresses cost nothing, until memory is mapped there. */
EXPORT CUresult cuMemAddressReserve(CUdeviceptr *address, size_t bytes, size_t alignment, CUdeviceptr wanted,
                                    unsigned long long flags) {
  void *start;
  map(&start, bytes, RESERVED);
  *address = (CUdeviceptr)start;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuMemAddressFree(CUdeviceptr address, size_t bytes) {
  unmap((void *)address);
  return CUDA_SUCCESS;
}

/* The handle of an amount of memory is that amount: nothing else is ever asked about it. */
EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *properties,
                            unsigned long long flags) {
  CUresult error = CUDA_ERROR_OUT_OF_MEMORY;
  pthread_mutex_lock(&lock);
  if (fits(bytes)) {
    in_use += bytes;
    *handle = bytes;
    error = CUDA_SUCCESS;
  }
  pthread_mutex_unlock(&lock);
  if (error == CUDA_SUCCESS) {
    record(ALLOCATION, "cuMemCreate", (double)bytes, 0);
  }
  return error;
}

EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  pthread_mutex_lock(&lock);
  in_use -= handle;
  pthread_mutex_unlock(&lock);
  record(RELEASE, "cuMemRelease", (double)handle, 0);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuMemMap(CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
                         unsigned long long flags) {
  return CUDA_SUCCESS;
}

/* The next memory that is mapped there is other memory, so that what was in this one is gone. */
EXPORT CUresult cuMemUnmap(CUdeviceptr address, size_t bytes) {
  madvise((void *)address, bytes, MADV_DONTNEED);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuMemSetAccess(CUdeviceptr address, size_t bytes, const CUmemAccessDesc *access, size_t count) {
  return CUDA_SUCCESS;
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
