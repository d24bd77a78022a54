"""What every test may use: the embedded weights and pictures drawn from a seed."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores are shared with servers and browsers
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("VISIONGATE_PACKED_WEIGHTS", "off")  # gigabytes, for the true shape
if not os.path.exists("/dev/nvidiactl"):  # before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1")
