"""What the compiled code says of itself: registers, spills, shared memory, instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton

from benchmarks.compiled.compiler import Launch
from cmr.kernels.gpu._launch import TARGETS

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

# Per multiprocessor: bytes of shared memory, warps, programs, 32-bit registers.
LIMITS = {
    "sm_80": (164 << 10, 64, 32, 65536),
    "sm_86": (100 << 10, 48, 16, 65536),
    "sm_89": (100 << 10, 48, 24, 65536),
    "sm_90": (228 << 10, 64, 32, 65536),
    "sm_100": (228 << 10, 64, 32, 65536),
    "sm_120": (100 << 10, 48, 24, 65536),
}
MATRIX = ("HGMMA", "HMMA", "IMMA", "QMMA", "UTCHMMA", "UTCQMMA", "OMMA", "DMMA")
WIDE = re.compile(r"(LDG|LDGSTS|UTMALDG)\S*\.(BYPASS\.)?(LTC128B\.)?128")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)")


def figures(launch: Launch, name: str) -> dict[str, Any]:
    """The figures of one compiled kernel for the architecture `name`.

    Returns:
        registers (per thread), stack (bytes per thread), spills (instructions), shared (bytes per
        program), warps, occupancy (share of the multiprocessor's warps, None on AMD), matrix (kind
        of matrix instruction and its count), wide_loads (128-bit loads) and instructions.
    """
    read = _amd if TARGETS[name].backend == "hip" else _nvidia
    return {
        "kernel": launch.kernel,
        "grid": list(launch.grid),
        "warps": launch.compiled.metadata.num_warps,
        "shared": launch.compiled.metadata.shared,
        **read(launch, name),
    }


def _nvidia(launch: Launch, name: str) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(launch.compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        listing = _tool("nvdisasm", "-c", file.name)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    assert found, f"no resource usage in: {usage}"
    registers, stack, local = map(int, found.groups())
    names = _INSTRUCTION.findall(listing)
    kinds = Counter(full.partition(".")[0] for full in names)
    return {
        "registers": registers,
        "stack": stack + local,
        "spills": kinds["LDL"] + kinds["STL"],
        "occupancy": _occupancy(launch, name, registers),
        "matrix": {kind: kinds[kind] for kind in MATRIX if kinds[kind]},
        "wide_loads": sum(bool(WIDE.match(full)) for full in names),
        "instructions": len(names),
    }


def _amd(launch: Launch, name: str) -> dict[str, Any]:
    text = launch.compiled.asm["amdgcn"]

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", text)
        assert found, f"no {key} in the assembly"
        return int(found[1])

    names = re.findall(r"^\s+([a-z]\w+)", text, re.MULTILINE)
    matrix = Counter(full for full in names if full.startswith("v_mfma"))
    return {
        "registers": number("vgpr_count"),
        "stack": number("private_segment_fixed_size"),
        "spills": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "occupancy": None,
        "matrix": {"MFMA": sum(matrix.values())} if matrix else {},
        "wide_loads": sum(full.endswith("load_dwordx4") for full in names),
        "instructions": len(names),
    }


def _occupancy(launch: Launch, name: str, registers: int) -> float:
    shared, warps, programs, file = LIMITS[name]
    own = launch.compiled.metadata.num_warps
    of_a_warp = -(-registers * 32 // 256) * 256  # registers are given in units of 256
    by = (
        file // of_a_warp // own,
        shared // (launch.compiled.metadata.shared + 1024),  # 1 KiB a program is the system's
        warps // own,
        programs,
    )
    return round(min(by) * own / warps, 3)


def _tool(tool: str, *words: str) -> str:
    return subprocess.run([TOOLS / tool, *words], capture_output=True, text=True, check=True).stdout
