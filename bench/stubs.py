"""Type stubs of the two faces, for editors and type checkers. `python -m rlx_gpu.bench.stubs`

The faces make their classes when they are asked for, from the registry; what reads the sources without running them
would see none. A stub names every class, with a type for each hyperparameter by its kind and for each option.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from ..engine.state import ROUNDINGS
from ..kernels.formats import STATE_FORMATS
from ..optim.groups import REFUSED, SWITCHES
from ..reference.hyper import COUPLED_DECAY, REQUIRED, Hyper
from ..table import TABLE, Algorithm

FACES = ("rlx_gpu", "rlx_gpu.optim")
WIDTH = 120
# Where the names in a stub come from that cannot be asked for it.
HOMES = {
    "Callable": "collections.abc",
    "Sequence": "collections.abc",
    "Any": "typing",
    "ClassVar": "typing",
    "Literal": "typing",
    "ParamsT": "torch.optim.optimizer",
    "Triple": "rlx_gpu.reference.newton_schulz",
    "LrScale": "rlx_gpu.reference.by_name",
    "UseFallback": "rlx_gpu.reference.by_name",
    "Algorithm": "rlx_gpu.table",
    "TABLE": "rlx_gpu.table",
}


def render(face: str) -> str:
    """The stub of a face."""
    module = importlib.import_module(face)
    bases = dict.fromkeys(_base(module, name) for name in TABLE)
    outlined = [base for base in bases if base.__module__ == face]
    homes = HOMES | {base.__name__: base.__module__ for base in bases if base not in outlined}
    reexports, members = [], []
    for name in module.__all__:
        value = getattr(module, name)
        home = HOMES.get(name, getattr(value, "__module__", face))
        if name in TABLE:
            members.append(_class(module, TABLE[name]))
        elif isinstance(value, ModuleType):
            reexports.append(f"from . import {name} as {name}")
        elif home != face:
            reexports.append(f"from {home} import {name} as {name}")
        elif value not in outlined:
            members.append(_function(value) if callable(value) else f"{name}: {type(value).__name__}")
    body = "\n\n".join([*map(_outline, outlined), *members])
    used = {name for name in homes.keys() - module.__all__ if re.search(rf"\b{name}\b", body)}
    head = f'"""{(module.__doc__ or "").splitlines()[0]}\n\nWritten by `python -m rlx_gpu.bench.stubs`.\n"""'
    return f"# fmt: off\n{head}\n\n{_imports({name: homes[name] for name in used}, reexports)}\n\n{body}\n"


def path(face: str) -> Path:
    """Where a stub lies: beside its module or inside its package."""
    return Path(importlib.import_module(face).__file__ or "").with_suffix(".pyi")


def write() -> None:
    """Write the stubs anew."""
    for face in FACES:
        path(face).write_text(render(face), encoding="utf-8")


def hyper_type(hyper: Hyper) -> str:
    """The type of a hyperparameter's values."""
    names = _literal(hyper.choices)
    several = hyper.default if isinstance(hyper.default, tuple) else ()
    kinds = {
        "float": "float",
        "floats": f"tuple[{', '.join('float' for _ in several)}]",
        "steps": "int",
        "bool": "bool",
        "int": "int",
        "choice": names,
        "sizes": "Sequence[int]",
        "coefficients": f"{names} | Sequence[Triple]",
    }
    return kinds[hyper.kind] + (" | None" if hyper.optional else "")


def _class(module: ModuleType, algorithm: Algorithm) -> str:
    """An optimizer's class: its first line of documentation, and the constructor's signature with types."""
    made, base = getattr(module, algorithm.name), _base(module, algorithm.name)
    of_torch = "params" in made.__signature__.parameters
    hypers = {hyper.name: hyper_type(hyper) for hyper in algorithm.hyperparameters}
    options = {name: str(one.annotation) for name, one in inspect.signature(base.__init__).parameters.items()}
    types = {**options, **hypers, "state_dtype": _literal(STATE_FORMATS), "rounding": _literal(ROUNDINGS)}
    types["params"] = "ParamsT | torch.nn.Module" if algorithm.hidden_only else "ParamsT"
    if of_torch:
        types["lr"] = types["lr"].replace("float", "float | torch.Tensor")
    parameters, marked = ["self"], False
    for name, parameter in made.__signature__.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not marked:
            parameters.append("*")
            marked = True
        default = "" if parameter.default is REQUIRED else f" = {_quoted(parameter.default)}"
        parameters.append(f"{name}: {types[name]}{default}")
    if of_torch:
        parameters += [one for one in _switches(algorithm) if one.split(":")[0] not in made.__signature__.parameters]
    doc = f'    """{made.__doc__.splitlines()[0]}"""'
    constructor = f"    def __init__(\n{_filled(parameters, '        ')}\n    ) -> None: ..."
    return f"class {algorithm.name}({base.__name__}):\n{doc}\n{constructor}"


def _switches(algorithm: Algorithm) -> list[str]:
    """Torch's switches between implementations: those that change nothing, and those with one allowed value."""
    ignored = [f"{name}: bool | None = None" for name in SWITCHES]
    coupled = COUPLED_DECAY in algorithm.hyperparameters
    allowed = {name: name == "decoupled_weight_decay" and not coupled for name in REFUSED}
    return [*ignored, *(f"{name}: Literal[{value}] = {value}" for name, value in allowed.items())]


def _base(module: ModuleType, name: str) -> type[Any]:
    """The class that an optimizer of a face is made from."""
    base: type[Any] = getattr(module, name).__mro__[1]
    return base


def _outline(base: type[Any]) -> str:
    """A base that is defined in the face's own module: its public attributes and methods."""
    lines = [f"{name}: {kind}" for name, kind in inspect.get_annotations(base).items() if not name.startswith("_")]
    public = {name: value for name, value in vars(base).items() if not name.startswith("_")}
    lines += [_function(value) for value in public.values() if callable(value)]
    lines += [_property(name, value) for name, value in public.items() if isinstance(value, property)]
    (parent,) = base.__bases__
    named = parent.__name__ if parent.__module__ == base.__module__ else "torch.optim.Optimizer"
    return f"class {base.__name__}({named}):\n{textwrap.indent(chr(10).join(lines), '    ')}"


def _property(name: str, value: property) -> str:
    """A property, or an attribute of its type where it may be set."""
    assert value.fget is not None, "properties here are read"
    return _function(value.fget) if value.fset is None else f"{name}: {inspect.get_annotations(value.fget)['return']}"


def _function(function: Any) -> str:
    """A function's signature, as its source has it."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function))).body
    assert isinstance(node, ast.FunctionDef) and node.returns
    decorators = "".join(f"@{ast.unparse(one)}\n" for one in node.decorator_list if not _hidden(one))
    return f"{decorators}def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}: ..."


def _hidden(decorator: ast.expr) -> bool:
    """Whether a decorator is nobody's business but the implementation's."""
    return ast.unparse(decorator).startswith("_")


def _filled(parameters: list[str], indent: str) -> str:
    """Lines of parameters, each with as many as fit; a line ends between two of them, never inside one."""
    whole = ", ".join(one.replace(" ", "\0") for one in parameters)
    lines = textwrap.fill(whole, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False)
    return lines.replace("\0", " ")


def _literal(values: Iterable[str]) -> str:
    """The type of a few names."""
    return f"Literal[{', '.join(map(_quoted, values))}]"


def _quoted(value: Any) -> str:
    """A value as the sources write it, with double quotes."""
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _imports(needed: dict[str, str], reexports: list[str]) -> str:
    """Import lines in the linter's order: the library's, torch's, this package's, and the face's own modules."""
    names: dict[str, list[str]] = {}
    for name, home in sorted(needed.items()):
        names.setdefault(home, []).append(name)
    lines = sorted([*(f"from {home} import {', '.join(found)}" for home, found in names.items()), *reexports])
    rooms: dict[str, list[str]] = {"": [], "torch": ["import torch"], "rlx_gpu": [], ".": []}
    for line in lines:
        room = re.match(r"from (torch|rlx_gpu|\.)", line)
        rooms[room[1] if room else ""].append(line)
    return "\n\n".join("\n".join(found) for found in rooms.values() if found)


if __name__ == "__main__":
    write()
