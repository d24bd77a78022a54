r"""Trains the embedded model from scratch on drawn pictures; README.md has the recipe.

    python -m visiongate.mini.train --data DATA --seconds 560 --total-seconds 1680 --save a.pt
    python -m visiongate.mini.train --data DATA --seconds 560 --total-seconds 1680 --resume a.pt \\
        --save b.pt

With several GPUs, start it with torchrun; gradients are averaged over all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from visiongate.mini.network import Linear, TrainingNetwork
from visiongate.mini.packing import (
    GLYPHS_PER_PATCH,
    Batch,
    Glyphs,
    Progress,
    attention_mask,
    stream,
)
from visiongate.mini.scenes.fonts import FontBook, fonts_in
from visiongate.mini.scenes.words import Vocabulary, load_vocabulary
from visiongate.model.config import ModelConfig

NUM_GLYPH_PATCHES = 8192  # patches a step that the auxiliary loss looks at
WARM_UP_STEPS = 100


@dataclass(frozen=True, slots=True)
class Losses:
    """Of one step: answers, glyphs, and the share of answer tokens that were right."""

    answer: Tensor
    glyph: Tensor
    accuracy: Tensor


class Muon:
    """Momentum with orthogonalised updates for the matrices (Jordan et al., 2024).

    Matrices of one shape are stacked and treated together; the fused qkv map counts as three.
    """

    def __init__(
        self, named: list[tuple[str, nn.Parameter]], *, momentum: float = 0.95, decay: float = 0.01
    ) -> None:
        self.momentum, self.decay = momentum, decay
        groups: dict[tuple[int, int], list[tuple[nn.Parameter, int]]] = {}
        for name, parameter in named:
            parts = 3 if name.endswith("attn.qkv.weight") else 1
            shape = (parameter.shape[0] // parts, parameter.shape[1])
            groups.setdefault(shape, []).append((parameter, parts))
        self.groups = list(groups.items())
        self.buffers: list[Tensor | None] = [None] * len(self.groups)

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Moves the matrices; gradients stay as they are."""
        for index, (shape, members) in enumerate(self.groups):
            gradients = []
            for parameter, parts in members:
                assert parameter.grad is not None
                gradients.append(parameter.grad.view(parts, *shape))
            gradient = torch.cat(gradients).float()
            buffer = self.buffers[index]
            if buffer is None:
                buffer = self.buffers[index] = torch.zeros_like(gradient)
            buffer.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(buffer, self.momentum))
            update = update * max(1, shape[0] / shape[1]) ** 0.5
            start = 0
            for parameter, parts in members:
                change = update[start : start + parts].reshape(parameter.shape).to(parameter.dtype)
                parameter.mul_(1 - rate * self.decay).add_(change, alpha=-rate)
                start += parts


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices, roughly, by five Newton-Schulz steps in bfloat16."""
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, polynomial, x, beta=3.4445)
    return x.mT if is_tall else x


def photograph(pixels: Tensor, camera: Tensor, desk: Tensor) -> Tensor:
    """Bytes (P, height, width, 3) to what a camera might see, normalised to [-1, 1].

    Perspective where `camera` is not the identity; then uneven light, contrast, blur and noise.
    """
    x = pixels.float().div_(127.5).sub_(1).permute(0, 3, 1, 2)
    P, _, height, width = x.shape

    def often(probability: float) -> Tensor:
        return (torch.rand(P, 1, 1, 1, device=x.device) < probability).float()

    def upto(limit: float, channels: int = 1) -> Tensor:
        return torch.rand(P, channels, 1, 1, device=x.device) * limit

    x = _through_camera(x, camera, desk)
    x = x * (1 - often(0.5) * upto(0.35)) + often(0.5) * (upto(0.3, 3) - 0.15)
    field = torch.rand(P, 1, 3, 4, device=x.device)
    shade = F.interpolate(field, (height, width), mode="bilinear", align_corners=True)
    x = (x + 1) * (1 - shade * often(0.35) * upto(0.4)) - 1
    side = upto(0.32).view(P, 1) * (torch.rand(P, 1, device=x.device) < 0.4)
    kernel = torch.cat((side, 1 - 2 * side, side), 1).repeat_interleave(3, 0)  # (3 P, 3)
    y = x.reshape(1, 3 * P, height, width)
    y = F.conv2d(F.pad(y, (1, 1, 0, 0), mode="replicate"), kernel[:, None, None, :], groups=3 * P)
    y = F.conv2d(F.pad(y, (0, 0, 1, 1), mode="replicate"), kernel[:, None, :, None], groups=3 * P)
    x = y.view_as(x)
    x = x + torch.randn_like(x) * (often(0.45) * upto(0.11))
    return x.clamp_(-1, 1).permute(0, 2, 3, 1)


def _through_camera(x: Tensor, camera: Tensor, desk: Tensor) -> Tensor:
    """Resamples (P, 3, height, width) by homographies (P, 3, 3); outside the page lies the desk."""
    P, _, height, width = x.shape
    rows = (torch.arange(height, device=x.device) + 0.5) * 2 / height - 1
    columns = (torch.arange(width, device=x.device) + 0.5) * 2 / width - 1
    y, z = torch.meshgrid(rows, columns, indexing="ij")
    points = torch.stack((z, y, torch.ones_like(z)), -1).view(-1, 3)
    source = points @ camera.transpose(1, 2)  # (P, height * width, 3)
    grid = (source[..., :2] / source[..., 2:]).view(P, height, width, 2)
    ground = desk[:, :, None, None]
    return F.grid_sample(x - ground, grid, padding_mode="zeros", align_corners=False) + ground


def forward(
    network: TrainingNetwork,
    head: nn.Module,
    batch: Batch,
    dtype: torch.dtype,
    *,
    augment: bool = True,
) -> Losses:
    """The losses of a batch."""
    if augment:
        pixels = photograph(batch["pixels"], batch["camera"], batch["desk"])
    else:
        pixels = batch["pixels"].float() / 127.5 - 1
    features, taps, patches = network.see(pixels.to(dtype))
    B = batch["token_ids"].shape[0]
    features, *taps = (t.reshape(B, -1, t.shape[-1]) for t in (features, *taps))
    states = network.read(
        batch["token_ids"].long(),
        batch["positions"],
        attention_mask(batch["segments"]),
        features,
        taps,
        batch["feature_rows"].long(),
    )
    index = batch["target_index"].long()[..., None].expand(-1, -1, states.shape[-1])
    logits = network.logits(states.gather(1, index))
    targets, weights = batch["targets"].long(), batch["weights"]
    each = F.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=-1, reduction="none"
    )
    answer = (each.view_as(weights) * weights).sum() / weights.sum()
    with torch.no_grad():
        right = (logits.argmax(-1) == targets) & (targets >= 0)
        accuracy = right.sum() / (targets >= 0).sum()
    return Losses(answer, glyph_loss(head, patches, batch["glyphs"]), accuracy)


def glyph_loss(head: nn.Module, patches: Tensor, glyphs: Tensor) -> Tensor:
    """How badly the last vision states name the glyphs in their patch.

    This is what makes the tower see within minutes; the head is thrown away after training. Patches
    that hold something are chosen first.
    """
    labels = glyphs.long().view(-1, GLYPHS_PER_PATCH)
    holds = (labels[:, 0] > 0).float()
    chosen = (torch.rand_like(holds) + 0.7 * holds).topk(min(NUM_GLYPH_PATCHES, len(holds))).indices
    logits = head(patches.reshape(-1, patches.shape[-1])[chosen]).float()
    return F.cross_entropy(
        logits.view(chosen.numel() * GLYPHS_PER_PATCH, -1), labels[chosen].flatten()
    )


class Batches(torch.utils.data.IterableDataset[Batch]):
    """Every loader worker draws its own endless stream."""

    def __init__(
        self,
        tokenizer_file: Path,
        fonts: FontBook,
        vocabulary: Vocabulary,
        seed: int,
        progress: Progress,
    ) -> None:
        self.arguments = (tokenizer_file, fonts, vocabulary)
        self.seed, self.progress = seed, progress

    def __iter__(self) -> Iterator[Batch]:
        torch.set_num_threads(1)
        worker = torch.utils.data.get_worker_info()
        number = worker.id if worker else 0
        return stream(
            *self.arguments, self.seed * 1000 + number, self.progress, size_seed=number + 1
        )


@dataclass(slots=True)
class Trainer:
    """Network, auxiliary head and optimisers, with how far they are."""

    network: TrainingNetwork
    head: nn.Module
    device: torch.device
    dtype: torch.dtype
    matrix_rate: float
    vector_rate: float
    step: int = 0
    pictures: int = 0
    seconds: float = 0.0
    steps_here: int = field(default=0, init=False)
    _parameters: list[nn.Parameter] = field(init=False)
    _muon: Muon = field(init=False)
    _adam: torch.optim.AdamW = field(init=False)

    def start(self) -> None:
        """Makes the optimisers; call after loading a checkpoint."""
        named = list(self.network.named_parameters())
        matrices = [(n, p) for n, p in named if p.ndim == 2 and "embed" not in n]
        taken = {id(p) for _, p in matrices}
        rest = [p for _, p in named if id(p) not in taken] + list(self.head.parameters())
        self._parameters = [*self.network.parameters(), *self.head.parameters()]
        self._muon = Muon(matrices)
        self._adam = torch.optim.AdamW(
            rest, betas=(0.9, 0.95), weight_decay=0.0, fused=self.device.type == "cuda"
        )

    def train_on(self, batch: Batch, *, rate: float, glyph_weight: float) -> Losses:
        """One step; `rate` scales both learning rates."""
        losses = forward(self.network, self.head, batch, self.dtype)
        (losses.answer + glyph_weight * losses.glyph).backward()
        self._average_gradients()
        self.steps_here += 1
        rate *= min(1.0, self.steps_here / WARM_UP_STEPS)
        self._muon.step(self.matrix_rate * rate)
        for group in self._adam.param_groups:
            group["lr"] = self.vector_rate * rate
        self._adam.step()
        for parameter in self._parameters:
            parameter.grad = None
        self.step += 1
        self.pictures += len(batch["pixels"]) * _world_size()
        return losses

    def _average_gradients(self) -> None:
        if _world_size() == 1:
            return
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat, op=distributed.ReduceOp.AVG)
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def save(self, path: Path) -> None:
        """Writes weights in bfloat16 and the counters; optimiser state is not kept."""
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "network": {k: v.bfloat16() for k, v in self.network.state_dict().items()},
            "head": {k: v.bfloat16() for k, v in self.head.state_dict().items()},
            "counters": (self.step, self.pictures, self.seconds),
        }
        torch.save(state, path)

    def load(self, path: Path) -> None:
        """Continues from what `save` wrote."""
        state = torch.load(path, map_location=self.device)
        self.network.load_state_dict({k: v.float() for k, v in state["network"].items()})
        self.head.load_state_dict({k: v.float() for k, v in state["head"].items()})
        self.step, self.pictures, self.seconds = state["counters"]


def rate_at(progress: float, decay_from: float) -> float:
    """Constant, then straight down to 2 %."""
    if progress < decay_from:
        return 1.0
    return max(0.02, (1 - progress) / (1 - decay_from))


def glyph_weight_at(progress: float) -> float:
    """The auxiliary loss leads at first and never quite leaves."""
    return 1.0 if progress < 0.1 else max(0.15, 1 - (progress - 0.1) * 4)


def new_trainer(config: ModelConfig, num_glyphs: int, device: torch.device) -> Trainer:
    """A trainer with fresh weights."""
    network = TrainingNetwork(config).to(device)
    head = Linear(config.vision.hidden_size, GLYPHS_PER_PATCH * num_glyphs).to(device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return Trainer(network, head, device, dtype, matrix_rate=0.015, vector_rate=2e-3)


def main() -> None:
    """Trains for `--seconds` of the `--total-seconds` that the schedule spans."""
    options = _parse()
    began = time.monotonic()
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    progress = torch.multiprocessing.Value("d", 0.0)
    vocabulary = load_vocabulary(options.data / "words.json").split("train")
    fonts = fonts_in((options.data / "fonts",))
    dataset = Batches(options.tokenizer, fonts, vocabulary, options.seed * 100 + rank, progress)
    resumed = _counters(options.resume)[2] if options.resume else 0.0
    progress.value = min(1.0, resumed / options.total_seconds)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=3,
        pin_memory=device.type == "cuda",
        multiprocessing_context="fork",
    )
    batches = iter(loader)  # the workers start before CUDA does
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" in os.environ:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(options.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.cache_size_limit = 64
    trainer = new_trainer(
        ModelConfig.from_pretrained(options.config), Glyphs(vocabulary).count, device
    )
    if options.resume:
        trainer.load(options.resume)
    trainer.start()
    torch.manual_seed(options.seed * 10 + rank)
    if options.compile:
        for block in (
            *trainer.network.model.visual.blocks,
            *trainer.network.model.language_model.layers,
        ):
            block.compile()
    _run(trainer, batches, progress, options, began, is_first=rank == 0)
    if rank == 0:
        trainer.save(options.save)
        _say(saved=str(options.save), step=trainer.step, pictures=trainer.pictures)
    os._exit(0)  # the loader's workers need no farewell


def _run(
    trainer: Trainer,
    batches: Iterator[Batch],
    progress: Progress,
    options: argparse.Namespace,
    began: float,
    *,
    is_first: bool,
) -> None:
    before = trainer.seconds
    last_time, last_pictures, waited = time.monotonic(), trainer.pictures, 0.0
    while True:
        stop = time.monotonic() - began > options.seconds or trainer.steps_here >= options.steps
        if _agree(stop, trainer.device, every=8, step=trainer.step):
            break
        trainer.seconds = before + time.monotonic() - began
        done = min(1.0, trainer.seconds / options.total_seconds)
        progress.value = done
        start = time.monotonic()
        batch = next(batches)
        waited += time.monotonic() - start
        batch = {k: v.to(trainer.device, non_blocking=True) for k, v in batch.items()}
        losses = trainer.train_on(
            batch, rate=rate_at(done, options.decay_from), glyph_weight=glyph_weight_at(done)
        )
        if trainer.step % options.log_every == 0:
            values = [float(v.detach()) for v in (losses.answer, losses.glyph, losses.accuracy)]
            now = time.monotonic()
            speed = (trainer.pictures - last_pictures) / (now - last_time)
            if is_first:
                _say(
                    step=trainer.step,
                    progress=round(done, 3),
                    tokens=batch["token_ids"].shape[1],
                    answer=round(values[0], 3),
                    glyph=round(values[1], 3),
                    accuracy=round(values[2], 3),
                    pictures=trainer.pictures,
                    per_second=round(speed),
                    waited=round(waited / (now - last_time), 2),
                )
            if not math.isfinite(values[0]):
                raise FloatingPointError("the loss is no longer a number")
            last_time, last_pictures, waited = now, trainer.pictures, 0.0


def _agree(stop: bool, device: torch.device, *, every: int, step: int) -> bool:
    """Whether all processes stop now; asked every few steps, because it waits for the device."""
    if _world_size() == 1:
        return stop
    if step % every:
        return False
    flag = torch.tensor(float(stop), device=device)
    distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
    return bool(flag.item())


def _world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def _say(**facts: object) -> None:
    """One line of JSON on stdout."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def _counters(path: Path) -> tuple[int, int, float]:
    counters: tuple[int, int, float] = torch.load(path, map_location="cpu")["counters"]
    return counters


def _parse() -> argparse.Namespace:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="what mini.prepare wrote")
    parser.add_argument("--tokenizer", type=Path, default=here / "weights" / "tokenizer.json")
    parser.add_argument("--config", type=Path, default=here / "weights")
    parser.add_argument("--seconds", type=float, default=560, help="of this run")
    parser.add_argument("--total-seconds", type=float, default=1680, help="of all runs together")
    parser.add_argument(
        "--decay-from", type=float, default=0.65, help="progress at which the rate falls"
    )
    parser.add_argument("--resume", type=Path)
    parser.add_argument("--save", type=Path, default=Path("run.pt"))
    parser.add_argument("--steps", type=int, default=10**9)
    parser.add_argument("--workers", type=int, default=13)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
