/* The driver interface: torch asks it for little, Triton loads and launches compiled kernels by it. */
#include "stand_in.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <string.h>

#define DONE(name, ...)                                                                                                \
  EXPORT CUresult name(__VA_ARGS__) {                                                                                  \
    return CUDA_SUCCESS;                                                                                               \
  }

static const CUcontext CONTEXT = (CUcontext)0x1000;

/* ---- card and context ---- */

DONE(cuInit, unsigned flags)

EXPORT CUresult cuDriverGetVersion(int *version) {
  cudaDriverGetVersion(version);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int *count) {
  cudaGetDeviceCount(count);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice *device, int ordinal) {
  *device = ordinal;
  return CUDA_SUCCESS;
}

/* Both enumerations have the same numbers. */
EXPORT CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
  cudaDeviceGetAttribute(value, (enum cudaDeviceAttr)attribute, device);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned *flags, int *active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
  *context = CONTEXT;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext *context) {
  *context = CONTEXT;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetDevice(CUdevice *device) {
  *device = 0;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetLimit(size_t *value, CUlimit limit) {
  *value = 0;
  return CUDA_SUCCESS;
}

DONE(cuCtxSetCurrent, CUcontext context)
DONE(cuCtxSetLimit, CUlimit limit, size_t value)

EXPORT CUresult cuGetErrorString(CUresult error, const char **text) {
  *text = "an error of the stand-in";
  return CUDA_SUCCESS;
}

EXPORT CUresult cuPointerGetAttribute(void *value, CUpointer_attribute attribute, CUdeviceptr address) {
  if (attribute == CU_POINTER_ATTRIBUTE_DEVICE_POINTER) {
    memcpy(value, &address, sizeof address);
  } else {
    memset(value, 0, sizeof(int)); /* the number of the card, for example */
  }
  return CUDA_SUCCESS;
}

/* ---- compiled kernels ---- */

EXPORT CUresult cuModuleLoad(CUmodule *module, const char *path) {
  *module = new_handle();
  return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleLoadData(CUmodule *module, const void *image) {
  *module = new_handle();
  return CUDA_SUCCESS;
}

/* A function is known by its name only, which a launch records. */
EXPORT CUresult cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name) {
  *function = (CUfunction)strdup(name);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int *value, CUfunction_attribute attribute, CUfunction function) {
  *value = attribute == CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK ? 1024 : 0;
  return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                               unsigned block_y, unsigned block_z, unsigned shared, CUstream stream, void **arguments,
                               void **more) {
  record(KERNEL, (const char *)function, (double)grid_x * grid_y * grid_z, 0);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernelEx(const CUlaunchConfig *config, CUfunction function, void **arguments, void **more) {
  record(KERNEL, (const char *)function, (double)config->gridDimX * config->gridDimY * config->gridDimZ, 0);
  return CUDA_SUCCESS;
}

EXPORT CUresult cuOccupancyMaxActiveClusters(int *clusters, CUfunction function, const CUlaunchConfig *config) {
  *clusters = 1;
  return CUDA_SUCCESS;
}

DONE(cuModuleUnload, CUmodule module)
DONE(cuFuncSetAttribute, CUfunction function, CUfunction_attribute attribute, int value)
DONE(cuFuncSetCacheConfig, CUfunction function, CUfunc_cache config)
