"""Convolutional networks of today, in small, for 32 x 32 images: one trained, others with random weights.

    python benchmarks/mobile_nets.py [--bench DIR]      # trains the MobileNetV3-style one, 5 to 10 minutes on one core

``trained`` gives the file of a MobileNetV3-style network (Howard et al. 2019: inverted residuals, depthwise layers,
squeeze-excite, HardSwish), trained on CIFAR-10's ``train.npz`` alone with flips and shifts, one thread, seeded, and
kept in benchmarks/out. ``untrained`` gives others with random weights: EfficientNet-like (SiLU), ShuffleNet-like
(grouped, channel shuffle), and a segmentation network with two inputs and two outputs (ConvTranspose, Resize, Concat).
"""

from __future__ import annotations

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import OUT, parser
from torch import nn

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPOCHS, BATCH = 30, 64


class ConvBN(nn.Sequential):
    """A convolution that keeps the image size at stride 1, its batch norm, and an activation."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = None,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([act()] if act else []))


class SqueezeExcite(nn.Module):
    """``x * gate(x)`` with one gate a channel (Hu et al. 2018)."""

    def __init__(self, channels: int, gate: type[nn.Module], act: type[nn.Module]) -> None:
        super().__init__()
        inner = max(8, (channels // 4 + 7) // 8 * 8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)
        self.act, self.gate = act(), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gate(self.fc2(self.act(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise, perhaps squeeze-excite, 1x1 back; around it the input where shapes allow."""

    def __init__(
        self, inputs: int, kernel: int, inner: int, outputs: int, se: bool, act: type[nn.Module], stride: int,
        gate: type[nn.Module] = nn.Hardsigmoid, se_act: type[nn.Module] = nn.ReLU,
    ) -> None:  # fmt: skip
        super().__init__()
        self.adds = inputs == outputs and stride == 1
        parts: list[nn.Module] = [ConvBN(inputs, inner, act=act)] if inner != inputs else []
        parts.append(ConvBN(inner, inner, kernel, stride, groups=inner, act=act))
        if se:
            parts.append(SqueezeExcite(inner, gate, se_act))
        self.block = nn.Sequential(*parts, ConvBN(inner, outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(x)
        return x + y if self.adds else y


class MobileNetV3(nn.Module):
    """8 blocks; 280 thousand weights, 37 convolutions, 2 linear layers. ``[n, 3, 32, 32]`` -> logits ``[n, 10]``."""

    def __init__(self) -> None:
        super().__init__()
        relu, swish = nn.ReLU, nn.Hardswish
        rows: Sequence[tuple[int, int, int, int, bool, type[nn.Module], int]] = (
            (16, 3, 16, 16, True, relu, 1),
            (16, 3, 64, 24, False, relu, 2),
            (24, 3, 72, 24, False, relu, 1),
            (24, 5, 96, 40, True, swish, 2),
            (40, 5, 160, 40, True, swish, 1),
            (40, 5, 120, 48, True, swish, 1),
            (48, 5, 192, 64, True, swish, 2),
            (64, 5, 256, 64, True, swish, 1),
        )
        blocks = [InvertedResidual(*row) for row in rows]
        self.features = nn.Sequential(ConvBN(3, 16, 3, act=swish), *blocks, ConvBN(64, 256, act=swish))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(256, 256), swish(), nn.Linear(256, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class EfficientNet(nn.Module):
    """The same kind of blocks with SiLU, and Sigmoid for the gates (Tan and Le 2019)."""

    def __init__(self) -> None:
        super().__init__()
        rows = ((16, 3, 48, 24, True, nn.SiLU, 2), (24, 3, 96, 24, True, nn.SiLU, 1), (24, 5, 96, 40, True, nn.SiLU, 2))
        blocks = [InvertedResidual(*row, gate=nn.Sigmoid, se_act=nn.SiLU) for row in rows]
        self.features = nn.Sequential(ConvBN(3, 16, 3, act=nn.SiLU), *blocks, ConvBN(40, 160, act=nn.SiLU))
        self.classifier = nn.Linear(160, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class Shuffle(nn.Module):
    """Grouped 1x1, channels dealt anew over the groups, depthwise, grouped 1x1 (Zhang et al. 2018)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = ConvBN(channels, channels, groups=groups, act=nn.ReLU)
        self.depthwise = ConvBN(channels, channels, 3, groups=channels)
        self.last = ConvBN(channels, channels, groups=groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        _, c, h, w = y.shape
        y = y.reshape(-1, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(-1, c, h, w)
        return torch.relu(x + self.last(self.depthwise(y)))


class ShuffleNet(nn.Module):
    """A stem, three shuffled units, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBN(3, 48, 3, 2, act=nn.ReLU6)
        self.units = nn.Sequential(*(Shuffle(48, 4) for _ in range(3)))
        self.classifier = nn.Linear(48, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.units(self.stem(x)).mean((2, 3)))


class Segment(nn.Module):
    """Down and up again over an image and a mask: Concat, ConvTranspose, Resize; a map and a score."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.mask = ConvBN(3, 16, 3, act=nn.ReLU), ConvBN(1, 16, 3, act=nn.ReLU)
        self.down1, self.down2 = ConvBN(32, 48, 3, 2, act=nn.ReLU), ConvBN(48, 64, 3, 2, act=nn.ReLU)
        self.up1 = nn.ConvTranspose2d(64, 48, 2, 2)
        self.join1 = ConvBN(96, 48, 3, act=nn.ReLU)
        self.up2 = nn.Upsample(scale_factor=2, mode="nearest")
        self.join2 = ConvBN(80, 24, 3, act=nn.ReLU)
        self.map, self.score = nn.Conv2d(24, 4, 1), nn.Linear(64, 3)

    def forward(self, image: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = torch.cat([self.image(image), self.mask(mask)], 1)
        middle = self.down1(top)
        low = self.down2(middle)
        y = self.join1(torch.cat([self.up1(low), middle], 1))
        y = self.join2(torch.cat([self.up2(y), top], 1))
        return self.map(y), self.score(low.mean((2, 3)))


UNTRAINED: dict[str, tuple[type[nn.Module], dict[str, int]]] = {
    "EfficientNet-like": (EfficientNet, {"input": 3}),
    "ShuffleNet-like": (ShuffleNet, {"input": 3}),
    "segmentation": (Segment, {"image": 3, "mask": 1}),
}
"""Network and, for each of its inputs, the channels."""


def to_tensor(x: np.ndarray) -> torch.Tensor:
    """uint8 ``[n, 32, 32, 3]`` -> normalized float32 ``[n, 3, 32, 32]``."""
    scaled = (x.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(scaled.transpose(0, 3, 1, 2).copy())


def train(x: np.ndarray, y: np.ndarray, *, epochs: int = EPOCHS, seed: int = 0) -> MobileNetV3:
    """A trained network in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = MobileNetV3().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images, labels = to_tensor(x), torch.from_numpy(y.astype(np.int64))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=2e-2)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=steps)
    start = time.monotonic()
    for epoch in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            batch = moved(images[rows], generator).to(memory_format=torch.channels_last)
            loss = nn.functional.cross_entropy(network(batch), labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"\repoch {epoch + 1} of {epochs}, {time.monotonic() - start:.0f} s", end="", flush=True)
    print()
    return network.eval()


def moved(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each batch shifted by up to 4 pixels, each image mirrored half of the time."""
    dy, dx = torch.randint(0, 9, (2,), generator=generator).tolist()
    images = nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")[:, :, dy : dy + 32, dx : dx + 32]
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def export(network: nn.Module, path: Path, inputs: dict[str, int]) -> None:
    """ONNX, opset 21, batch left open, weights inside, without the exporter's notes of this machine's paths."""
    examples = tuple(torch.zeros(2, channels, 32, 32) for channels in inputs.values())
    batch = torch.export.Dim("batch", min=1, max=4096)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network.eval(), examples, input_names=list(inputs), dynamic_shapes=tuple({0: batch} for _ in inputs),
            opset_version=21, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    for value in [*program.model.graph.inputs, *program.model.graph.outputs, *program.model.graph]:
        value.metadata_props.clear()
    program.save(path, external_data=False)


def trained(bench: Path) -> Path:
    """The trained network's file; the first call trains it."""
    path = OUT / "mobilenetv3.onnx"
    if not path.exists():
        OUT.mkdir(parents=True, exist_ok=True)
        torch.set_num_threads(1)
        with np.load(bench / "cifar10" / "train.npz") as data:
            network = train(data["x"], data["y"])
        partial = path.with_suffix(".part")
        export(network, partial, {"input": 3})
        partial.rename(path)
    return path


def untrained(name: str) -> Path:
    """The file of one of :data:`UNTRAINED`: random weights, and batch norms that have seen random images."""
    path = OUT / f"{name.lower().replace(' ', '-')}.onnx"
    kind, inputs = UNTRAINED[name]
    OUT.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    network = kind().train()
    with torch.no_grad():
        for _ in range(20):
            network(*(torch.randn(16, channels, 32, 32) for channels in inputs.values()))
    export(network, path, inputs)
    return path


def top1(path: Path, x: np.ndarray, y: np.ndarray) -> float:
    """Top-1 of a file on uint8 images, on stock ONNX Runtime."""
    from harness import accuracy

    return accuracy(path, to_tensor(x).numpy(), y)


def main() -> None:
    """Train, and say how good it is."""
    bench: Any = parser(__doc__).parse_args().bench
    path = trained(bench)
    with np.load(bench / "cifar10" / "val.npz") as data:
        halves: Sequence[tuple[str, slice]] = (("search", slice(0, 2000)), ("final", slice(2000, 4000)))
        found = {name: top1(path, data["x"][rows], data["y"][rows]) for name, rows in halves}
    print(f"{path}: {path.stat().st_size:,} bytes; top-1 {found['search']:.4f} and {found['final']:.4f}")
    for name in UNTRAINED:
        made = untrained(name)
        print(f"{made}: {made.stat().st_size:,} bytes, random weights")


if __name__ == "__main__":
    main()
