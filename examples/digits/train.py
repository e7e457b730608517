"""Trains a small CNN on scikit-learn's digits and writes what ``job.yaml`` beside this file needs.

    python examples/digits/train.py

writes ``digits.onnx`` (float32, input ``image`` [batch, 1, 8, 8], output ``logits`` [batch, 10]) and three data files
``digits-{train,val,final}.npz`` with ``x`` uint8 [n, 8, 8, 1] (values 0 to 16) and ``y`` int64 [n]. Training takes a
few seconds on one core and always gives the same network on the same machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

# Preprocessing, here and in job.yaml: (x / SCALE - MEAN) / STD.
SCALE, MEAN, STD = 16.0, 0.305, 0.376
SPLITS = {"train": 897, "val": 450, "final": 450}


class DigitsNet(nn.Module):
    """A stem, a residual block, a depthwise-separable layer and a classifier; 64 channels on 8x8 images.

    ``forward`` takes float32 [batch, 1, 8, 8] and gives logits, float32 [batch, 10].
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.stem = conv_bn(1, width)
        self.block1 = conv_bn(width, width)
        self.block2 = conv_bn(width, width)
        self.depthwise = conv_bn(width, width, groups=width)
        self.pointwise = conv_bn(width, width, kernel=1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of a batch of images."""
        x = self.relu(self.stem(image))
        x = self.relu(x + self.block2(self.relu(self.block1(x))))
        x = self.pool(x)
        x = self.relu(self.pointwise(self.relu(self.depthwise(x))))
        return self.classifier(self.average(x).flatten(1))


def conv_bn(inputs: int, outputs: int, *, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """A convolution that keeps the image size, and its batch norm, which the exporter folds into it."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def load_splits(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 1,797 digits, dealt class by class into SPLITS: ``x`` uint8 [n, 8, 8, 1], ``y`` int64 [n] each."""
    digits = load_digits()
    x = digits.images.astype(np.uint8)[..., np.newaxis]
    y = digits.target.astype(np.int64)
    splits = {}
    for name in ("final", "val"):
        x, x_held, y, y_held = train_test_split(x, y, test_size=SPLITS[name], random_state=seed, stratify=y)
        splits[name] = (x_held, y_held)
    splits["train"] = (x, y)
    return splits


def to_tensor(x: np.ndarray) -> torch.Tensor:
    """uint8 [n, 8, 8, 1] -> normalised float32 [n, 1, 8, 8]."""
    return torch.from_numpy(((x.astype(np.float32) / SCALE - MEAN) / STD).transpose(0, 3, 1, 2).copy())


def shift(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Each batch moved by at most one pixel each way: 897 images alone are soon learnt by heart."""
    dy, dx = torch.randint(-1, 2, (2,), generator=generator).tolist()
    background = (0 - MEAN) / STD
    padded = nn.functional.pad(images, (1, 1, 1, 1), value=background)
    return padded[:, :, 1 + dy : 9 + dy, 1 + dx : 9 + dx]


def train(x: np.ndarray, y: np.ndarray, *, epochs: int, seed: int) -> DigitsNet:
    """A trained network in evaluation mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network, images, labels = DigitsNet(), to_tensor(x), torch.from_numpy(y)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    batches = -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=6e-3, total_steps=epochs * batches)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(
                network(shift(images[rows], generator)), labels[rows], label_smoothing=0.05
            )
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def export(network: DigitsNet, path: Path) -> None:
    """Write the network as ONNX (opset 21, batch left open, weights inside the file), quietly."""
    example = torch.zeros(2, 1, 8, 8)
    batch = torch.export.Dim("batch", min=1, max=4096)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations; nothing a reader of this example can act on
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            network,
            (example,),
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes=({0: batch},),
            opset_version=21,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        for value in [*program.model.graph.inputs, *program.model.graph.outputs, *program.model.graph]:
            value.metadata_props.clear()  # stack traces: this machine's paths, and a twentieth of the file
        program.save(path, external_data=False)


def main() -> int:
    """Train, export, write the data, and print one line."""
    parser = argparse.ArgumentParser(description="Train a small CNN on scikit-learn's digits and export it to ONNX.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder to write to (default: here)")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    torch.set_num_threads(1)  # a second thread gains nothing at this size, and loses much beside a busy core
    options.out.mkdir(parents=True, exist_ok=True)
    splits = load_splits(options.seed)
    network = train(*splits["train"], epochs=options.epochs, seed=options.seed)
    export(network, options.out / "digits.onnx")
    for name, (x, y) in splits.items():
        np.savez_compressed(options.out / f"digits-{name}.npz", x=x, y=y)

    x, y = splits["val"]
    with torch.no_grad():
        accuracy = (network(to_tensor(x)).argmax(1).numpy() == y).mean()
    weights = sum(parameter.numel() for parameter in network.parameters())
    print(f"trained digits.onnx: {weights:,} weights, accuracy {accuracy:.4f} on {len(y)} images not trained on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
