/* The card as programs ask for it: properties, attributes, versions, errors. There is one card. */
#include "stand_in.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#undef cudaGetDeviceProperties /* a macro, for the name of a newer version of the same function */

#define CUDA_VERSION_NUMBER 13000

/* ---- the card ---- */

EXPORT cudaError_t cudaGetDeviceCount(int *count) {
  *count = 1;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}

SUCCEEDS(cudaSetDevice, int device)

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *properties, int device) {
  memset(properties, 0, sizeof *properties);
  snprintf(properties->name, sizeof properties->name, "%s", card()->name);
  properties->totalGlobalMem = card()->memory;
  properties->major = card()->capability / 10;
  properties->minor = card()->capability % 10;
  properties->multiProcessorCount = card()->multiprocessors;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->maxBlocksPerMultiProcessor = 32;
  properties->regsPerBlock = 65536;
  properties->regsPerMultiprocessor = 65536;
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerBlockOptin = card()->shared_memory;
  properties->sharedMemPerMultiprocessor = card()->shared_memory + 1024;
  properties->maxThreadsDim[0] = 1024;
  properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = 2147483647;
  properties->maxGridSize[1] = 65535;
  properties->maxGridSize[2] = 65535;
  properties->l2CacheSize = 50 << 20;
  properties->textureAlignment = 512;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attribute, int device) {
  const struct {
    enum cudaDeviceAttr attribute;
    int value;
  } known[] = {
      {cudaDevAttrComputeCapabilityMajor, card()->capability / 10},
      {cudaDevAttrComputeCapabilityMinor, card()->capability % 10},
      {cudaDevAttrMultiProcessorCount, card()->multiprocessors},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxThreadsPerMultiProcessor, 2048},
      {cudaDevAttrMaxBlocksPerMultiprocessor, 32},
      {cudaDevAttrMaxBlockDimX, 1024},
      {cudaDevAttrMaxBlockDimY, 1024},
      {cudaDevAttrMaxBlockDimZ, 64},
      {cudaDevAttrMaxGridDimX, 2147483647},
      {cudaDevAttrMaxGridDimY, 65535},
      {cudaDevAttrMaxGridDimZ, 65535},
      {cudaDevAttrMaxRegistersPerBlock, 65536},
      {cudaDevAttrMaxRegistersPerMultiprocessor, 65536},
      {cudaDevAttrMaxSharedMemoryPerBlock, 48 << 10},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, card()->shared_memory},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, card()->shared_memory + 1024},
      {cudaDevAttrL2CacheSize, 50 << 20},
  };
  *value = 0; /* of what the card has not */
  for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
    if (known[i].attribute == attribute) {
      *value = known[i].value;
    }
  }
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int room, int device) {
  snprintf(text, room, "0000:01:00.0");
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
  *can = 0;
  return cudaSuccess;
}

SUCCEEDS(cudaDeviceEnablePeerAccess, int peer, unsigned flags)

/* ---- versions ---- */

EXPORT cudaError_t cudaDriverGetVersion(int *version) {
  *version = CUDA_VERSION_NUMBER;
  return cudaSuccess;
}

EXPORT cudaError_t cudaRuntimeGetVersion(int *version) {
  *version = CUDA_VERSION_NUMBER;
  return cudaSuccess;
}

static int unsupported(void) {
  return 801; /* CUDA_ERROR_NOT_SUPPORTED */
}

/* torch looks functions of the driver up by it, all of them at once, and demands that they are there. */
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version,
                                                    unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *result) {
  *function = dlsym(RTLD_DEFAULT, name);
  if (!*function) {
    *function = (void *)unsupported;
  }
  if (result) {
    *result = cudaDriverEntryPointSuccess;
  }
  return cudaSuccess;
}

/* ---- errors ---- */

static __thread cudaError_t last;

cudaError_t failed(cudaError_t error) {
  last = error;
  return error;
}

EXPORT cudaError_t cudaGetLastError(void) {
  cudaError_t error = last;
  last = cudaSuccess;
  return error;
}

EXPORT cudaError_t cudaPeekAtLastError(void) {
  return last;
}

/* The texts are those of CUDA: people and programs search for them. */
EXPORT const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
  case cudaSuccess:
    return "no error";
  case cudaErrorMemoryAllocation:
    return "out of memory";
  case cudaErrorNoKernelImageForDevice:
    return "no kernel image is available for execution on the device";
  default:
    return "an error of the stand-in";
  }
}

EXPORT const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
  case cudaSuccess:
    return "cudaSuccess";
  case cudaErrorMemoryAllocation:
    return "cudaErrorMemoryAllocation";
  case cudaErrorNoKernelImageForDevice:
    return "cudaErrorNoKernelImageForDevice";
  default:
    return "cudaErrorUnknown";
  }
}

/* ---- the profiler, which has nothing to see ---- */

SUCCEEDS(cudaProfilerStart, void)
SUCCEEDS(cudaProfilerStop, void)
