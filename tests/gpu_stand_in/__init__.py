"""The CUDA path of the unchanged product on a stand-in for a GPU, in processes of a second virtual environment.

`library/` holds a C library that is preloaded and stands for the CUDA runtime, the driver and cuBLAS, as the CUDA build
of torch calls them: kernels are counted and compute nothing, memory is address space with a real limit. It shows
dispatch, checks of the compute capability, the allocator, running out of memory, host waits and numbers of launches.
It shows no value and no time, and it has no NCCL and no cuDNN.
"""
