"""What a start leaves undone."""

from __future__ import annotations

import subprocess
import sys

from tests.model.test_oracle import MINI


def test_building_the_network_does_not_import_the_compiler_of_torch() -> None:
    """Tables drawn on the meta device once imported it: two seconds and 130 MB of every start."""
    code = (
        "import sys, torch\n"
        "from visiongate.model.config import ModelConfig\n"
        "from visiongate.model.qwen3vl import Qwen3VL\n"
        "with torch.device('meta'):\n"
        "    Qwen3VL(ModelConfig.from_pretrained(sys.argv[1]))\n"
        "print('torch._dynamo' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(MINI)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
