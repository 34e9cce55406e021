/* In place of CUDA's header, which needs a compiler for CUDA. cuBLAS's headers want the names of these types only. */
#pragma once
typedef struct {
  unsigned short bits;
} __half;
typedef struct {
  __half x, y;
} __half2;
typedef __half half;
