"""What a runtime or a gauge needs beside autoq itself, and the command that installs it."""

from __future__ import annotations

from importlib.util import find_spec

# name of a runtime or gauge -> the modules it imports, and the extra of autoq that has them
EXTRAS: dict[str, tuple[tuple[str, ...], str]] = {
    "litert": (("ai_edge_litert",), "npu"),
    "openvino": (("openvino",), "openvino"),
    "vela": (("ethosu",), "npu"),
}


def missing_extra(*names: str) -> str:
    """The command that installs what the runtimes and gauges ``names`` lack here, or an empty string."""
    wanted = dict.fromkeys(extra for name in names if name in EXTRAS for extra in [EXTRAS[name][1]] if _lacks(name))
    return f"pip install 'autoq[{','.join(wanted)}]'" if wanted else ""


def _lacks(name: str) -> bool:
    return any(find_spec(module) is None for module in EXTRAS[name][0])
