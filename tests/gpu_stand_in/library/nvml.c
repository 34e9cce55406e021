/* NVIDIA's management library, which torch opens by its name where its allocator may grow segments in place, and asks
 * whether the card is part of a fabric of several machines. Its header comes with no wheel. */
#include "stand_in.h"

#define SUCCESS 0
#define NOT_SUPPORTED 3

EXPORT int nvmlInit_v2(void) {
  return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
  *device = new_handle();
  return SUCCESS;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  *version = 13000;
  return SUCCESS;
}

/* For the message of an out of memory: no other process uses the card. */
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *device, unsigned *count, void *processes) {
  *count = 0;
  return SUCCESS;
}

EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void *device, unsigned link, void *type) {
  return NOT_SUPPORTED;
}

EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void *device, unsigned link, void *information) {
  return NOT_SUPPORTED;
}
