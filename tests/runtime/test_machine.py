"""The machine's description: hand-written kernel texts, and the machine that the tests run on."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numpy as np

from autoq.runtime.machine import describe, parse_cpuinfo, software_versions

X86 = """processor	: 0
model name	: Some CPU @ 2.00GHz
physical id	: 0
core id		: 0
flags		: fpu avx2 avx512_vnni

processor	: 1
model name	: Some CPU @ 2.00GHz
physical id	: 0
core id		: 0
flags		: fpu avx2

processor	: 2
model name	: Some CPU @ 2.00GHz
physical id	: 1
core id		: 0
flags		: fpu avx2 avx512_vnni
"""

ARM = """processor	: 0
BogoMIPS	: 108.00
Features	: fp asimd asimddp
CPU part	: 0xd08

Hardware	: BCM2835
Model		: Some Board Rev 1.2
"""


def test_hyperthreads_share_a_core_and_flags_are_what_every_cpu_has():
    assert parse_cpuinfo(X86) == ("Some CPU @ 2.00GHz", frozenset({"fpu", "avx2"}), 2)


def test_arm_kernels_use_other_words():
    assert parse_cpuinfo(ARM) == ("Some Board Rev 1.2", frozenset({"fp", "asimd", "asimddp"}), 0)
    assert parse_cpuinfo("") == ("", frozenset(), 0)


def test_this_machine():
    machine = describe()
    assert machine.arch == platform.machine().lower()
    assert machine.os.startswith(platform.system())
    assert machine.cpu_model
    assert 1 <= machine.physical_cores <= machine.logical_cores == os.cpu_count()
    assert 1 <= machine.usable_cores <= machine.logical_cores
    assert machine.memory_bytes > 1 << 28
    if sys.platform == "linux" and machine.arch == "x86_64":
        assert "sse2" in machine.flags


def test_versions_name_what_is_installed_and_import_none_of_it():
    versions = software_versions()
    assert set(versions) == {
        "autoq", "python", "onnxruntime", "onnx", "numpy", "openvino", "litert", "vela", "optuna", "ray", "mlflow"
    }  # fmt: skip
    assert versions["numpy"] == np.__version__
    assert versions["python"] == platform.python_version()
    code = (
        "import sys; from autoq.runtime.machine import software_versions; software_versions();"
        "print([m for m in ('ray', 'mlflow', 'optuna') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
