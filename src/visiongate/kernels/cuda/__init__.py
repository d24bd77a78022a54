"""Kernels for NVIDIA GPUs: `ops` in Triton, `stream` in CUDA C++; imported only where one is used.

With TRITON_INTERPRET=1 in the environment `ops` computes on the CPU, slowly, for the tests.
"""
