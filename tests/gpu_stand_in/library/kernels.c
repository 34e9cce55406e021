/* Kernels: their host stubs are registered under their names, and a launch is recorded and computes nothing. */
#include "stand_in.h"

#include <cuda_runtime_api.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

/* ---- registration, which nvcc's start-up code of every library calls ---- */

/* torch registers about 150,000 kernels. Open addressing, by the address of the host stub. */
#define SLOTS (1 << 20)

typedef struct {
  const void *stub;
  const char *name;
} Registered;

static Registered registered[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* The slot of a stub, or the empty one where it belongs. */
static Registered *slot_of(const void *stub) {
  size_t slot = ((uint64_t)(uintptr_t)stub * 0x9E3779B97F4A7C15ull) >> 44;
  while (registered[slot].stub && registered[slot].stub != stub) {
    slot = (slot + 1) % SLOTS;
  }
  return registered + slot;
}

EXPORT void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[2];
  return handle;
}

EXPORT void __cudaRegisterFatBinaryEnd(void **handle) {
}

EXPORT void __cudaUnregisterFatBinary(void **handle) {
}

EXPORT void __cudaRegisterVar(void **handle, char *host, char *device, const char *name, int external, size_t size,
                              int constant, int global) {
}

EXPORT void __cudaRegisterFunction(void **handle, const char *stub, char *device_function, const char *name,
                                   int thread_limit, void *thread, void *block, void *block_dim, void *grid_dim,
                                   int *warp_size) {
  pthread_mutex_lock(&lock);
  *slot_of(stub) = (Registered){.stub = stub, .name = name};
  pthread_mutex_unlock(&lock);
}

/* ---- launches ---- */

static __thread struct {
  dim3 grid, block;
  size_t shared;
  void *stream;
} pushed[8];
static __thread int depth;

/* What stands in <<< >>> of a launch; the stub takes it from here. */
EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct CUstream_st *stream) {
  pushed[depth].grid = grid;
  pushed[depth].block = block;
  pushed[depth].shared = shared;
  pushed[depth].stream = stream;
  depth++;
  return 0;
}

EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, void *stream) {
  depth--;
  *grid = pushed[depth].grid;
  *block = pushed[depth].block;
  *shared = pushed[depth].shared;
  *(void **)stream = pushed[depth].stream;
  return cudaSuccess;
}

static cudaError_t launched(const void *stub, dim3 grid) {
  if (!card()->kernels) {
    return failed(cudaErrorNoKernelImageForDevice);
  }
  const char *name = slot_of(stub)->name;
  record(KERNEL, name ? name : "unknown", (double)grid.x * grid.y * grid.z, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaLaunchKernel(const void *stub, dim3 grid, dim3 block, void **arguments, size_t shared,
                                    cudaStream_t stream) {
  return launched(stub, grid);
}

EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *stub) {
  *kernel = (cudaKernel_t)stub;
  return cudaSuccess;
}

EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void **arguments, size_t shared,
                                      cudaStream_t stream) {
  return launched(kernel, grid);
}

EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *stub, void **arguments) {
  return launched(stub, config->gridDim);
}

EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void *data) {
  function(data);
  return cudaSuccess;
}

/* ---- what a launch asks before ---- */

EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *attributes, const void *function) {
  *attributes = (struct cudaFuncAttributes){
      .maxThreadsPerBlock = 1024,
      .numRegs = 32,
      .ptxVersion = card()->kernels,
      .binaryVersion = card()->kernels,
      .maxDynamicSharedSizeBytes = card()->shared_memory,
  };
  return cudaSuccess;
}

EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *function,
                                                                          int threads, size_t shared, unsigned flags) {
  *blocks = 2;
  return cudaSuccess;
}

SUCCEEDS(cudaFuncSetAttribute, const void *function, enum cudaFuncAttribute attribute, int value)
SUCCEEDS(cudaKernelSetAttributeForDevice, cudaKernel_t kernel, enum cudaFuncAttribute attribute, int value, int device)
