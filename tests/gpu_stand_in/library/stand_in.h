/* What the parts of the stand-in share. The library as a whole is read in this order:
 *
 *   card.c     which card it stands for, from environment variables
 *   record.c   what the host asked the card for, for tests that count it
 *   kernels.c  kernels: registered, launched, never computed
 *   device.c   properties of the card, versions, errors
 *   memory.c   address space with a limit, copies
 *   streams.c  streams and events, on which everything has always ended
 *   blas.c     cuBLAS and cuBLASLt
 *   driver.c   the driver interface, which Triton uses
 *   nvml.c     the management library
 *
 * Values that kernels would compute are not there. Device memory holds zeros, or what a copy from the host left in it.
 */
#ifndef STAND_IN_H
#define STAND_IN_H

#include <cuda_runtime_api.h>
#include <stddef.h>

#define EXPORT __attribute__((visibility("default")))

/* A function of the runtime that has nothing to do here. */
#define SUCCEEDS(name, ...)                                                                                            \
  EXPORT cudaError_t name(__VA_ARGS__) {                                                                               \
    return cudaSuccess;                                                                                                \
  }

/* ---- card.c ---- */
typedef struct {
  int capability; /* 75, 80, 90 */
  int kernels;    /* the architecture of the wheel's kernels that this card runs; 0 = none */
  int multiprocessors;
  int shared_memory;      /* bytes that one block may ask for */
  size_t memory;          /* bytes */
  size_t taken_by_others; /* bytes: the context, and other processes */
  char name[128];
} Card;

const Card *card(void);

/* ---- record.c ---- */
typedef enum {
  KERNEL,
  GEMM,
  MEMSET,
  TO_DEVICE,
  TO_DEVICE_PAGEABLE,
  TO_HOST,
  TO_HOST_PAGEABLE,
  ON_DEVICE,
  WAIT,
  ALLOCATION,
  RELEASE,
  PINNED,
  MARK
} Kind;

/* Remember a call.
 *
 * name: not copied. amount: operations of a GEMM, bytes of a copy or an allocation, blocks of a kernel's grid.
 * type: the type of a GEMM's inputs, as cudaDataType. */
void record(Kind kind, const char *name, double amount, int type);

/* ---- device.c ---- */

/* Keep an error for cudaGetLastError, and return it. */
cudaError_t failed(cudaError_t error);

/* ---- streams.c ---- */

/* A handle that is no other handle, and no address that anybody reads. */
void *new_handle(void);

#endif
