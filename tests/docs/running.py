"""Running a block of Python as it is written."""

from __future__ import annotations

import ast
import builtins
import dis
from collections.abc import Callable, Mapping
from types import CodeType
from typing import Any

import torch

from tests.docs.blocks import Block
from tests.docs.given import SMALLER, WITHOUT_GPU
from tests.docs.spec_paths import MODULES


class OurImports(ast.NodeTransformer):
    """`from models.x import Y` becomes `from cmr.models.x import Y`, where the table has Y."""

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.module in MODULES:
            for item in node.names:
                assert item.name in MODULES[node.module], f"{node.module} has no {item.name}"
            node.module = f"cmr.{node.module}"
        return node


def compiled(block: Block) -> CodeType:
    """The block's code, with the changes that `given.py` lists and our imports."""
    code = block.code
    changes = SMALLER if torch.cuda.is_available() else SMALLER + WITHOUT_GPU
    for written, run in changes:
        code = code.replace(written, run)
    tree = OurImports().visit(ast.parse("\n" * (block.line - 1) + code, block.file))
    return compile(tree, block.file, "exec")


def wanted(code: CodeType) -> list[str]:
    """Names that the code reads before it makes them, or only inside of its functions."""
    made: set[str] = set()
    found: dict[str, None] = {}
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            made.add(step.argval)
        elif step.opname == "LOAD_NAME" and step.argval not in made:
            found[step.argval] = None
    for name in _read_inside(code):
        if name not in made:
            found[name] = None
    return [name for name in found if not hasattr(builtins, name) and not name.startswith("__")]


def _read_inside(code: CodeType) -> list[str]:
    names = []
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            opnames = ("LOAD_GLOBAL", "LOAD_NAME")
            made = {s.argval for s in dis.get_instructions(inner) if s.opname == "STORE_NAME"}
            names += [
                step.argval
                for step in dis.get_instructions(inner)
                if step.opname in opnames and step.argval not in made
            ]
            names += _read_inside(inner)
    return names


def run(
    block: Block, given: Callable[[Block, str], Any], before: Mapping[str, Any] | None = None
) -> Mapping[str, Any]:
    """Run the block with what it takes for given; returns the names it leaves behind.

    Args:
        block: the block.
        given: gives a name that a block uses and does not make.
        before: names that are there already.

    Raises:
        KeyError: it reads a name that nothing gives.
    """
    code = compiled(block)
    names: dict[str, Any] = {"__name__": "__main__", **(before or {})}
    for name in wanted(code):
        if name not in names:
            names[name] = given(block, name)
    exec(code, names)
    return names
