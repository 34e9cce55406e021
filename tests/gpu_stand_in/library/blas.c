/* cuBLAS and cuBLASLt: a product is recorded with its operations. */
#include "stand_in.h"

#include <cublasLt.h>
#include <cublas_v2.h>
#include <stdlib.h>

#undef cublasCreate

#define DONE(name, ...)                                                                                                \
  EXPORT cublasStatus_t name(__VA_ARGS__) {                                                                            \
    return CUBLAS_STATUS_SUCCESS;                                                                                      \
  }

/* A batch of products of an m x k and a k x n matrix: two operations for each multiplication and addition. */
static cublasStatus_t product(const char *name, double m, double n, double k, double batch, int type) {
  record(GEMM, name, 2 * m * n * k * batch, type);
  return CUBLAS_STATUS_SUCCESS;
}

/* ---- handles ---- */

EXPORT cublasStatus_t cublasCreate_v2(cublasHandle_t *handle) {
  *handle = new_handle();
  return CUBLAS_STATUS_SUCCESS;
}

DONE(cublasDestroy_v2, cublasHandle_t handle)
DONE(cublasSetStream_v2, cublasHandle_t handle, cudaStream_t stream)
DONE(cublasSetWorkspace_v2, cublasHandle_t handle, void *workspace, size_t bytes)

static cublasMath_t math_mode;
static cublasPointerMode_t pointer_mode;

EXPORT cublasStatus_t cublasSetMathMode(cublasHandle_t handle, cublasMath_t mode) {
  math_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasGetMathMode(cublasHandle_t handle, cublasMath_t *mode) {
  *mode = math_mode;
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasSetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t mode) {
  pointer_mode = mode;
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t handle, cublasPointerMode_t *mode) {
  *mode = pointer_mode;
  return CUBLAS_STATUS_SUCCESS;
}

/* ---- products of any type ---- */

EXPORT cublasStatus_t cublasGemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                   int k, const void *alpha, const void *a, cudaDataType type_a, int ld_a,
                                   const void *b, cudaDataType type_b, int ld_b, const void *beta, void *c,
                                   cudaDataType type_c, int ld_c, cublasComputeType_t compute,
                                   cublasGemmAlgo_t algorithm) {
  return product("cublasGemmEx", m, n, k, 1, type_a);
}

EXPORT cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                                 int m, int n, int k, const void *alpha, const void *a,
                                                 cudaDataType type_a, int ld_a, long long stride_a, const void *b,
                                                 cudaDataType type_b, int ld_b, long long stride_b, const void *beta,
                                                 void *c, cudaDataType type_c, int ld_c, long long stride_c, int batch,
                                                 cublasComputeType_t compute, cublasGemmAlgo_t algorithm) {
  return product("cublasGemmStridedBatchedEx", m, n, k, batch, type_a);
}

/* ---- products in float32 and float64 ---- */

EXPORT cublasStatus_t cublasSgemm_v2(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                     int n, int k, const float *alpha, const float *a, int ld_a, const float *b,
                                     int ld_b, const float *beta, float *c, int ld_c) {
  return product("cublasSgemm", m, n, k, 1, CUDA_R_32F);
}

EXPORT cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                                int m, int n, int k, const float *alpha, const float *a, int ld_a,
                                                long long stride_a, const float *b, int ld_b, long long stride_b,
                                                const float *beta, float *c, int ld_c, long long stride_c, int batch) {
  return product("cublasSgemmStridedBatched", m, n, k, batch, CUDA_R_32F);
}

EXPORT cublasStatus_t cublasSgemmEx(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m, int n,
                                    int k, const float *alpha, const void *a, cudaDataType type_a, int ld_a,
                                    const void *b, cudaDataType type_b, int ld_b, const float *beta, void *c,
                                    cudaDataType type_c, int ld_c) {
  return product("cublasSgemmEx", m, n, k, 1, type_a);
}

EXPORT cublasStatus_t cublasDgemm_v2(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b, int m,
                                     int n, int k, const double *alpha, const double *a, int ld_a, const double *b,
                                     int ld_b, const double *beta, double *c, int ld_c) {
  return product("cublasDgemm", m, n, k, 1, CUDA_R_64F);
}

EXPORT cublasStatus_t cublasDgemmStridedBatched(cublasHandle_t handle, cublasOperation_t op_a, cublasOperation_t op_b,
                                                int m, int n, int k, const double *alpha, const double *a, int ld_a,
                                                long long stride_a, const double *b, int ld_b, long long stride_b,
                                                const double *beta, double *c, int ld_c, long long stride_c,
                                                int batch) {
  return product("cublasDgemmStridedBatched", m, n, k, batch, CUDA_R_64F);
}

EXPORT cublasStatus_t cublasSgemv_v2(cublasHandle_t handle, cublasOperation_t op, int m, int n, const float *alpha,
                                     const float *a, int ld_a, const float *x, int step_x, const float *beta, float *y,
                                     int step_y) {
  return product("cublasSgemv", m, n, 1, 1, CUDA_R_32F);
}

EXPORT cublasStatus_t cublasDotEx(cublasHandle_t handle, int n, const void *x, cudaDataType type_x, int step_x,
                                  const void *y, cudaDataType type_y, int step_y, void *result, cudaDataType type_r,
                                  cudaDataType compute) {
  return product("cublasDotEx", 1, 1, n, 1, type_x);
}

EXPORT cublasStatus_t cublasSdot_v2(cublasHandle_t handle, int n, const float *x, int step_x, const float *y,
                                    int step_y, float *result) {
  return product("cublasSdot", 1, 1, n, 1, CUDA_R_32F);
}

/* ---- cuBLASLt: products with a bias or a GELU in the same kernel ---- */

typedef struct {
  int transposed; /* the first matrix, as cublasOperation_t */
} Description;

typedef struct {
  double rows, columns;
  int type, batch;
} Layout;

EXPORT size_t cublasLtGetVersion(void) {
  return 130000;
}

EXPORT cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *description, cublasComputeType_t compute,
                                               cudaDataType_t scale) {
  *description = calloc(1, sizeof(Description));
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t description) {
  free(description);
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t description,
                                                     cublasLtMatmulDescAttributes_t attribute, const void *value,
                                                     size_t bytes) {
  if (attribute == CUBLASLT_MATMUL_DESC_TRANSA && bytes == sizeof(int)) {
    ((Description *)description)->transposed = *(const int *)value;
  }
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                                 uint64_t columns, int64_t ld) {
  Layout *made = calloc(1, sizeof *made);
  *made = (Layout){.rows = (double)rows, .columns = (double)columns, .type = type, .batch = 1};
  *layout = (cublasLtMatrixLayout_t)made;
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  free(layout);
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout,
                                                       cublasLtMatrixLayoutAttribute_t attribute, const void *value,
                                                       size_t bytes) {
  if (attribute == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT) {
    ((Layout *)layout)->batch = *(const int *)value;
  }
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
  *preference = new_handle();
  return CUBLAS_STATUS_SUCCESS;
}

DONE(cublasLtMatmulPreferenceDestroy, cublasLtMatmulPreference_t preference)
DONE(cublasLtMatmulPreferenceSetAttribute, cublasLtMatmulPreference_t preference,
     cublasLtMatmulPreferenceAttributes_t attribute, const void *value, size_t bytes)

/* One algorithm, which needs no workspace. */
EXPORT cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t description,
                                                     cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                                     cublasLtMatmulPreference_t preference, int wanted,
                                                     cublasLtMatmulHeuristicResult_t found[], int *count) {
  found[0] = (cublasLtMatmulHeuristicResult_t){.state = CUBLAS_STATUS_SUCCESS};
  *count = 1;
  return CUBLAS_STATUS_SUCCESS;
}

EXPORT cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t description, const void *alpha,
                                     const void *a, cublasLtMatrixLayout_t layout_a, const void *b,
                                     cublasLtMatrixLayout_t layout_b, const void *beta, const void *c,
                                     cublasLtMatrixLayout_t layout_c, void *d, cublasLtMatrixLayout_t layout_d,
                                     const cublasLtMatmulAlgo_t *algorithm, void *workspace, size_t workspace_bytes,
                                     cudaStream_t stream) {
  const Layout *first = (const Layout *)layout_a;
  const Layout *result = (const Layout *)layout_d;
  int transposed = ((const Description *)description)->transposed != CUBLAS_OP_N;
  double inner = transposed ? first->rows : first->columns;
  return product("cublasLtMatmul", result->rows, result->columns, inner, result->batch, first->type);
}
