"""The Triton kernels compile for every card we name, also where there is none."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import sys
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction
from visiongate.kernels.cuda import ops, weight8

CAPABILITY = int(sys.argv[1])
SHARED_BYTES = {80: 164 << 10, 89: 100 << 10, 90: 228 << 10}[CAPABILITY]  # of a multiprocessor
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int32: "*i32", torch.int64: "*i64",
         torch.float64: "*fp64"}
compiled = set()

def compile_instead(self, *args, grid, warmup, **options):
    options = {k: v for k, v in options.items() if k not in ("debug", "instrumentation_mode")}
    signature, constants, attributes = {}, {}, {}
    for place, (param, value) in enumerate(zip(self.params, args, strict=True)):
        if param.is_constexpr:
            signature[param.name], constants[(place,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name] = TYPES[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[param.name] = "fp32" if isinstance(value, float) else "i32"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(self, signature, constants, attributes)
    done = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    assert done.metadata.shared <= SHARED_BYTES - 1024
    compiled.add(self.__name__)

JITFunction.run = compile_instead
meta = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="meta")
i32, f32 = torch.int32, torch.float32
"""

OPS = """
for dtype, pdl in ((torch.bfloat16, CAPABILITY >= 90), (torch.float32, False)):
    ops.embed_rows(meta(8, dtype=i32), meta(8, dtype=i32), meta(8, dtype=i32),
                   meta(100, 2560, dtype=dtype), meta(8, 2560, dtype=f32))
    for parts in (None, meta(4, 8, 2560, dtype=f32), meta(1, 8, 2560, dtype=dtype)):
        ops.add_norm(meta(8, 2560, dtype=f32), parts, meta(2560, dtype=dtype), 1e-6,
                     meta(8, 2560, dtype=dtype))
    for delta in (None, meta(8, 1024, dtype=dtype)):
        ops.add_layer_norm(meta(8, 1024, dtype=dtype), delta, meta(1024, dtype=dtype),
                           meta(1024, dtype=dtype), meta(8, 1024, dtype=dtype), 1e-6)
    ops.silu_mul(meta(8, 2 * 9728, dtype=dtype), meta(8, 9728, dtype=dtype))
    ops.draw_rows(meta(8, 151936, dtype=f32), meta(3, 6, dtype=torch.float64),
                  ops.ArgmaxSpace(8, torch.device("meta")),
                  ops.DrawSpace(8, torch.device("meta")), meta(8, dtype=i32), pdl=pdl)
    for keeps_others in (False, True):
        ops.place_rows(meta(5, 2560, dtype=dtype), meta(8, dtype=i32), meta(8, 2560, dtype=f32),
                       keeps_others=keeps_others)
    ops.gather_angles(meta(3, 8, dtype=i32), meta(64, dtype=torch.int64),
                      meta(4096, 64, dtype=f32), meta(4096, 64, dtype=f32),
                      meta(8, 64, dtype=f32), meta(8, 64, dtype=f32))
    ops.qk_norm_rope_store(
        meta(8, 6144, dtype=dtype), meta(128, dtype=dtype), meta(128, dtype=dtype),
        meta(8, 64, dtype=f32), meta(8, 64, dtype=f32), meta(10, 8, 64, 128, dtype=dtype),
        meta(10, 8, 64, 128, dtype=dtype), meta(8, dtype=i32), 1e-6)
    ops.rotate_vision(
        meta(8, 3, 16, 64, dtype=dtype), meta(8, 32, dtype=f32), meta(8, 32, dtype=f32), 16)
    space = ops.AttentionSpace(8, 100, 32, 8, 128, torch.device("meta"))
    ints = [meta(8, dtype=i32) for _ in range(3)]
    ops.decode_attention(
        meta(8, 6144, dtype=dtype), meta(128, dtype=dtype), meta(128, dtype=dtype),
        meta(4096, 64, dtype=f32), meta(4096, 64, dtype=f32), meta(10, 8, 64, 128, dtype=dtype),
        meta(10, 8, 64, 128, dtype=dtype), *ints, meta(8, 20, dtype=i32), space,
        meta(8, 4096, dtype=dtype), eps=1e-6, pdl=pdl)
    ops.prompt_attention(
        meta(256, 6144, dtype=dtype), meta(10, 8, 64, 128, dtype=dtype),
        meta(10, 8, 64, 128, dtype=dtype), meta(20, dtype=i32),
        meta(2, dtype=i32), meta(256, 4096, dtype=dtype))
    argmax = ops.ArgmaxSpace(8, torch.device("meta"))
    ops.argmax_rows(meta(8, 151936, dtype=f32), argmax, meta(8, dtype=i32), pdl=pdl)
"""

WEIGHT8 = """
weight8.has_dependent_launch = lambda device: CAPABILITY >= 90
weight8._shared_bytes = lambda device: SHARED_BYTES
meta_device = torch.device("meta")
for storage in ("int8", "float8"):
    for N, K, epilogue in (
        (6144, 2560, "bfloat16"), (2560, 4096, "partials"), (19456, 2560, "silu"),
        (151936, 2560, "float32"),
    ):
        linear = weight8.Linear8(weight8.Matrix8.empty(N, K, storage, meta_device), epilogue)
        for B in (1, 64):
            linear(meta(B, K), linear.empty(B))
    table = weight8.Matrix8.empty(1000, 2560, storage, meta_device)
    table.widen(meta(1000 * 2560))
    weight8.embed_rows(meta(8, dtype=i32), meta(8, dtype=i32), meta(8, dtype=i32), table,
                       meta(8, 2560, dtype=f32))
"""


def compiled(work: str, capability: int) -> list[str]:
    """The names of the kernels that a script launches, once they are compiled."""
    script = f"{COMPILE}{work}print(' '.join(sorted(compiled)))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(capability)],
        capture_output=True, text=True, check=False, timeout=110,
        env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.split()


@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles(capability: int) -> None:
    assert len(compiled(OPS, capability)) == 14


@pytest.mark.parametrize("capability", [80, 89, 90])
def test_the_kernels_of_weights_in_8_bits_compile(capability: int) -> None:
    """For the published 4B shape, in the shared memory of a card of each kind."""
    assert compiled(WEIGHT8, capability) == ["_embed8", "_linear8", "_widen"]
