"""VisionGate: a private, self-hosted vision API for Qwen3-VL."""

__version__ = "0.1.0"
