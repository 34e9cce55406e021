/* In place of CUDA's header, which needs a compiler for CUDA. cuBLAS's headers want the names of these types only. */
#pragma once
typedef struct {
  unsigned short bits;
} __nv_bfloat16;
typedef struct {
  __nv_bfloat16 x, y;
} __nv_bfloat162;
typedef __nv_bfloat16 nv_bfloat16;
