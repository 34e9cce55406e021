/* Streams and events. Work has ended when the call that asks for it returns, so waiting is recorded and takes no time.
 */
#include "stand_in.h"

#include <cuda_runtime_api.h>
#include <stdint.h>

#undef cudaStreamGetCaptureInfo /* a macro, for the name of a newer version of the same function */

void *new_handle(void) {
  static uintptr_t handles = 0x10000;
  return (void *)__sync_add_and_fetch(&handles, 64);
}

/* ---- streams ---- */

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *stream) {
  *stream = new_handle();
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned flags) {
  return cudaStreamCreate(stream);
}

EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int priority) {
  return cudaStreamCreate(stream);
}

EXPORT cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  record(WAIT, "stream", 0, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceSynchronize(void) {
  record(WAIT, "device", 0, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function, void *data,
                                         unsigned flags) {
  function(stream, cudaSuccess, data);
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t stream, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

SUCCEEDS(cudaStreamDestroy, cudaStream_t stream)
SUCCEEDS(cudaStreamQuery, cudaStream_t stream)
SUCCEEDS(cudaStreamWaitEvent, cudaStream_t stream, cudaEvent_t event, unsigned flags)

/* ---- graphs are not there: no stream is ever captured ---- */

EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream, enum cudaStreamCaptureStatus *status,
                                            unsigned long long *id, cudaGraph_t *graph, const cudaGraphNode_t **nodes,
                                            const cudaGraphEdgeData **edges, size_t *count) {
  *status = cudaStreamCaptureStatusNone;
  if (id) {
    *id = 0;
  }
  return cudaSuccess;
}

SUCCEEDS(cudaThreadExchangeStreamCaptureMode, enum cudaStreamCaptureMode *mode)

/* ---- events ---- */

EXPORT cudaError_t cudaEventCreate(cudaEvent_t *event) {
  *event = new_handle();
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned flags) {
  return cudaEventCreate(event);
}

EXPORT cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  record(WAIT, "event", 0, 0);
  return cudaSuccess;
}

EXPORT cudaError_t cudaEventElapsedTime(float *milliseconds, cudaEvent_t start, cudaEvent_t end) {
  *milliseconds = 1; /* a rate is a quotient by it */
  return cudaSuccess;
}

SUCCEEDS(cudaEventDestroy, cudaEvent_t event)
SUCCEEDS(cudaEventQuery, cudaEvent_t event)
SUCCEEDS(cudaEventRecord, cudaEvent_t event, cudaStream_t stream)
SUCCEEDS(cudaEventRecordWithFlags, cudaEvent_t event, cudaStream_t stream, unsigned flags)
