"""The gateway in front of llama-cpp-python's server, with a tiny random model made here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.gateway.serving import Server, content_of, events, serve, wait_for

PYTHON = os.environ.get("LLAMA_PYTHON", sys.executable)
"""An interpreter with `llama-cpp-python[server]` and `gguf`; it builds C++ for minutes."""

MAKE_MODEL = r"""
import sys
import numpy as np
from gguf import GGUFWriter, TokenType

rng = np.random.default_rng(7)
size, heads, blocks, hidden = 64, 4, 2, 128
tokens = [b"<unk>", b"<s>", b"</s>"] + [b"<0x%02X>" % i for i in range(256)]
tokens += [("\u2581" + word).encode() for word in "the a cat sits on mat and sees it all".split()]
kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
kinds += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * 10
writer = GGUFWriter(sys.argv[1], "llama")
writer.add_context_length(512)
writer.add_embedding_length(size)
writer.add_block_count(blocks)
writer.add_feed_forward_length(hidden)
writer.add_head_count(heads)
writer.add_head_count_kv(heads)
writer.add_layer_norm_rms_eps(1e-5)
writer.add_rope_dimension_count(size // heads)
writer.add_vocab_size(len(tokens))
writer.add_tokenizer_model("llama")
writer.add_token_list(tokens)
writer.add_token_scores([0.0] * len(tokens))
writer.add_token_types(kinds)
writer.add_bos_token_id(1)
writer.add_eos_token_id(2)
writer.add_chat_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")

def add(name, *shape):
    writer.add_tensor(name, rng.normal(0, 0.2, shape).astype(np.float32))

add("token_embd.weight", len(tokens), size)
add("output.weight", len(tokens), size)
writer.add_tensor("output_norm.weight", np.ones(size, np.float32))
for i in range(blocks):
    for part in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.{i}.{part}.weight", np.ones(size, np.float32))
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        add(f"blk.{i}.{part}.weight", size, size)
    add(f"blk.{i}.ffn_gate.weight", hidden, size)
    add(f"blk.{i}.ffn_up.weight", hidden, size)
    add(f"blk.{i}.ffn_down.weight", size, hidden)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.write_tensors_to_file()
writer.close()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running llama-cpp-python server."""
    probe = subprocess.run([PYTHON, "-c", "import gguf, llama_cpp.server"], capture_output=True)
    if probe.returncode:
        pytest.skip("llama-cpp-python[server] and gguf are not installed (LLAMA_PYTHON)")
    folder = tmp_path_factory.mktemp("llama")
    model = folder / "tiny.gguf"
    subprocess.run([PYTHON, "-c", MAKE_MODEL, str(model)], check=True, timeout=60)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w")
    process = subprocess.Popen(
        [
            *(PYTHON, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)),
            *("--n_ctx", "512", "--model_alias", "tiny-llama"),
        ],
        stdout=log,
        stderr=log,
    )
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return requests.get(f"{url}/v1/models", timeout=1).ok
        except requests.RequestException:
            return False

    try:
        wait_for(
            answers,
            seconds=60,
            failed=lambda: process.poll() is not None,
            why=lambda: Path(log.name).read_text()[-3000:],
        )
        yield url
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.fixture(scope="module")
def front(llama: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("front"), "--upstream", llama) as found:
        yield found


def ask(**fields: object) -> dict[str, object]:
    messages = [{"role": "user", "content": "the cat sits"}]
    return {"messages": messages, "max_tokens": 12, "temperature": 0, **fields}


def test_a_text_chat_goes_through_and_counts_tokens(front: Server, llama: str) -> None:
    found = front.post("/v1/chat/completions", ask()).json()
    assert found["model"] == "tiny-llama"
    direct = requests.post(f"{llama}/v1/chat/completions", json=ask(), timeout=30).json()
    assert found["choices"][0]["message"]["content"] == direct["choices"][0]["message"]["content"]
    assert found["choices"][0]["finish_reason"] == direct["choices"][0]["finish_reason"]


def test_a_stream_goes_through_and_adds_up(front: Server) -> None:
    whole = front.post("/v1/chat/completions", ask()).json()["choices"][0]["message"]["content"]
    streamed = events(front.post("/v1/chat/completions", ask(stream=True), stream=True))
    assert content_of(streamed) == whole
    assert streamed[-1][1] == "[DONE]"


def test_what_llama_refuses_is_a_clean_error_and_the_next_request_works(front: Server) -> None:
    long = [{"role": "user", "content": "cat " * 2000}]
    refused = front.post("/v1/chat/completions", ask() | {"messages": long})
    assert refused.status_code == 503  # it says 200 to a stream that it will not begin
    assert refused.json()["error"]["message"].startswith("the upstream server")
    assert front.post("/v1/chat/completions", ask()).status_code == 200
