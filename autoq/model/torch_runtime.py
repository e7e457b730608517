"""PyTorch as a runtime, for NVIDIA GPUs: candidates as they are, on the kernels that PyTorch has for them.

The file says what each layer is multiplied in; :mod:`autoq.model.torch_plan` makes a PyTorch function of it. The metric
is scored with that function as it stands. What is timed is the same function captured as a CUDA graph, compiled first
where asked for, and its time is what CUDA's own events say. With ``device: cpu`` everything runs without a GPU: slowly,
with the same values up to rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch

from autoq.errors import AutoqError, ProfileError, TrialError
from autoq.model.graph import Graph
from autoq.model.torch_plan import Plan, Weights, make_plan
from autoq.runtime.base import InputSpec
from autoq.runtime.memory import peak_growth_bytes
from autoq.runtime.ort import batches_of, joined, rows_of_output
from autoq.runtime.timing import DeviceTime

MODES = ("graph", "compile", "eager")
"""How a step runs: captured as a CUDA graph; compiled, then captured; kernel by kernel."""

_WARM_RUNS = 3
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory")

Function = Callable[..., tuple[torch.Tensor, ...]]


@dataclass(frozen=True, slots=True)
class TorchSession:
    """A model and its plans, one for each choice of the inputs' shapes."""

    graph: Graph
    specs: tuple[InputSpec, ...]
    weights: Weights = field(default_factory=Weights)
    plans: dict[tuple[tuple[int, ...], ...], Plan] = field(default_factory=dict)


class TorchRuntime:
    """The :class:`~autoq.runtime.base.Runtime` of PyTorch on a GPU (``device: cuda``), or on the CPU."""

    name = "torch"
    suffix = ".onnx"

    def __init__(self, device: str = "cuda", mode: str = "graph") -> None:
        """``mode`` is one of :data:`MODES`. Initialises no GPU, so that a process may fork afterwards.

        Raises :class:`~autoq.errors.ProfileError` for an unknown option, and where there is no such device.
        """
        if mode not in MODES:
            raise ProfileError(f"runtime.options.mode: {mode!r} is none of {', '.join(MODES)}")
        if problem := device_problem(device):
            raise ProfileError(problem)
        self.device, self.mode = device, mode

    def open(self, model: bytes | Path, *, threads: int = 1) -> TorchSession:
        """A session; on a CPU, PyTorch computes with ``threads`` threads from then on."""
        if self.device == "cpu":
            torch.set_num_threads(threads)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is float32
        with self._faults("load"):
            parsed = onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))
            return TorchSession(graph=Graph(parsed), specs=_specs(parsed))

    def inputs(self, session: TorchSession) -> tuple[InputSpec, ...]:
        """What the model must be fed."""
        return session.specs

    def run(self, session: TorchSession, inputs: Mapping[str, np.ndarray], batch: int) -> dict[str, np.ndarray]:
        """As :func:`autoq.runtime.ort.run_batches`, on the device."""
        parts: dict[str, list[np.ndarray]] = {}
        for feeds, kept in batches_of(session.specs, inputs, batch):
            fed = next(len(values) for values in feeds.values())
            with self._faults("metric"):
                tensors = self._tensors(session, feeds)
                plan = self._plan(session, tensors)
                outputs = [value.cpu().numpy() for value in plan(*tensors)]
            for name, value in zip(plan.outputs, outputs, strict=True):
                parts.setdefault(name, []).append(rows_of_output(name, value, fed)[:kept])
        return {name: joined(name, part) for name, part in parts.items()}

    def step(self, session: TorchSession, feeds: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """One inference on inputs that lie on the device. On a GPU it returns the time by CUDA's events."""
        with self._faults("measure"):
            tensors = self._tensors(session, feeds)
            function: Function = self._plan(session, tensors)
            if self.mode == "compile":
                function = compiled(function, tensors)
            if self.device == "cpu":
                return _without_gradients(function, tensors)
            return _timed(_captured(function, tensors) if self.mode != "eager" else lambda: function(*tensors))

    def peak_growth_bytes(self, action: Callable[[], object]) -> int:
        """The peak of the device's memory that tensors take during ``action``; on a CPU, as in runtime/memory.py."""
        if self.device == "cpu":
            return peak_growth_bytes(action)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        torch.cuda.synchronize()
        return max(0, torch.cuda.max_memory_allocated() - before)

    def _plan(self, session: TorchSession, tensors: list[torch.Tensor]) -> Plan:
        shapes = tuple(tuple(tensor.shape) for tensor in tensors)
        if shapes not in session.plans:
            feeds = dict(zip(session.graph.inputs, tensors, strict=True))
            session.plans[shapes] = make_plan(session.graph, feeds, session.weights)
        return session.plans[shapes]

    def _tensors(self, session: TorchSession, feeds: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
        wanted = {spec.name: spec.dtype for spec in session.specs}
        missing = [name for name in session.graph.inputs if name not in feeds]
        if missing:
            raise TrialError("metric", f"the model's input {missing[0]!r} is not fed; the data has {', '.join(feeds)}")
        arrays = [np.array(feeds[name], wanted[name]) for name in session.graph.inputs]
        return [torch.from_numpy(array).to(self.device) for array in arrays]

    @contextlib.contextmanager
    def _faults(self, reason: str) -> Iterator[None]:
        """Without gradients; what goes wrong becomes a failed trial, and memory that ran out is given back."""
        try:
            with torch.inference_mode():
                yield
        except TrialError:
            raise
        except Exception as error:
            text = " ".join(str(error).split())
            if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
                if self.device != "cpu":
                    torch.cuda.empty_cache()
                message = f"{self.device} is out of memory: {text[:300]}"
                raise TrialError(reason, f"{message}; give the job smaller batches") from None
            what = str(error) if isinstance(error, AutoqError) else f"{type(error).__name__}: {text[:300]}"
            raise TrialError(reason, f"PyTorch cannot run the model: {what}") from error


def device_problem(device: str) -> str:
    """Why PyTorch cannot compute on ``device`` here, and what to do; empty where it can. Asks, and starts, no GPU."""
    if device == "cpu":
        return ""
    if device != "cuda":
        return f"runtime.options.device: {device!r} is neither cuda nor cpu"
    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) is built without CUDA, which the runtime 'torch' computes with; "
            "install a build with it (https://pytorch.org/get-started), on a machine with an NVIDIA GPU"
        )
    if torch.cuda.device_count() == 0:  # by NVML: CUDA itself could not be used after a fork
        return "PyTorch finds no NVIDIA GPU on this machine; check the driver with nvidia-smi"
    return ""


def compiled(function: Function, tensors: list[torch.Tensor]) -> Function:
    """``function`` for these shapes, by torch.compile: its operations are traced first, with all that is known."""
    from torch.fx.experimental.proxy_tensor import make_fx

    # Tensors made in inference mode cannot be traced by autograd's dispatcher; nothing here needs gradients.
    with torch.inference_mode(False), torch.no_grad():
        traced = make_fx(lambda *feeds: function(*feeds))(*[tensor.clone() for tensor in tensors])
        made: Function = torch.compile(traced, dynamic=False)
        made(*tensors)
    return made


def _without_gradients(function: Function, tensors: list[torch.Tensor]) -> Callable[[], object]:
    def step() -> object:
        with torch.inference_mode():
            return function(*tensors)

    step()
    return step


def _captured(function: Function, tensors: list[torch.Tensor]) -> Callable[[], object]:
    """``function`` on these tensors as a CUDA graph, after warm-up on a stream of its own, as PyTorch asks for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARM_RUNS):
            function(*tensors)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = function(*tensors)

    def replay() -> object:
        graph.replay()
        return kept  # its memory is the graph's

    return replay


def _timed(run: Callable[[], object]) -> Callable[[], DeviceTime]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def step() -> DeviceTime:
        with torch.inference_mode():
            start.record()
            run()
            end.record()
        end.synchronize()
        return DeviceTime(start.elapsed_time(end) / 1e3)

    step()
    return step


def _specs(model: onnx.ModelProto) -> tuple[InputSpec, ...]:
    constants = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name not in constants:
            kind = value.type.tensor_type
            shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
            specs.append(InputSpec(name=value.name, dtype=dtype, shape=shape))
    return tuple(specs)
