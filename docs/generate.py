"""Writes the pages of docs/reference that are made from code, and the charts of docs/results.

    python docs/generate.py            write them
    python docs/generate.py --check    exit 1 and name those that are out of date

`python.md` has the signatures of the package's functions, `cli.md` is made from the signatures and
docstrings of the commands, `recipes.md` from the fields of a recipe's sections,
`method-options.md` from the fields of every method's `Config`. What a field means is the string
below it. The charts are drawn from the tables of their pages (`charts.py`).
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import edgedistill
from edgedistill.common.settings import Settings
from edgedistill.recipes.explain import meanings

REFERENCE = Path(__file__).parent / "reference"
NOTE = "<!-- Made by docs/generate.py (make reference): change the code, not this page. -->"


def cell(text: str) -> str:
    """`text` on one line of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def code(text: str) -> str:
    """`text` as code, empty if it is."""
    return f"`{text}`" if text else ""


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table without its empty columns, and an empty line."""
    full = [i for i, _ in enumerate(heads) if any(row[i] for row in rows)]
    lines = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(cell(line[i]) for i in full) + " |" for line in lines), ""]


# The command line


def commands(app: Any, before: str = "edgedistill") -> Iterator[tuple[str, Callable[..., Any]]]:
    """(what is typed, its function) of every command of a typer app, in the order of its help."""
    if app.registered_callback and app.registered_callback.callback:
        yield before, app.registered_callback.callback
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        yield f"{before} {name}", command.callback
    for group in app.registered_groups:
        yield from commands(group.typer_instance, f"{before} {group.name}")


def parameters(function: Callable[..., Any]) -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, type, typer's info or None, default) of what a command takes from the shell."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        kind, *infos = (
            get_args(hints[name]) if hasattr(hints[name], "__metadata__") else (hints[name],)
        )
        if getattr(kind, "__name__", "") != "Context":
            yield name, kind, infos[0] if infos else None, parameter.default


def bounds(info: Any) -> str:
    """The range of a number, in words; empty if there is none."""
    low, high = getattr(info, "min", None), getattr(info, "max", None)
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else ""


def metavar(kind: Any, info: Any) -> str:
    """What stands for an option's value."""
    if info.metavar:
        return str(info.metavar)
    words = [each.__name__ for each in flat(kind) if isinstance(each, type)]
    return {"int": "N", "float": "NUMBER", "Path": "PATH"}.get(words[0], "TEXT")


def flat(kind: Any) -> list[Any]:
    """The types inside unions and lists, None left out."""
    inside = [each for part in get_args(kind) for each in flat(part)]
    if get_origin(kind) in (typing.Union, types.UnionType, list):
        return [each for each in inside if each is not types.NoneType]
    return [kind]


def shown(default: Any) -> str:
    """A default as it is typed; empty if there is none."""
    if default is inspect.Parameter.empty or default in (None, "", False):
        return ""
    return "on" if default is True else str(default)


def option_row(name: str, kind: Any, info: Any, default: Any) -> list[str]:
    """The row of one option."""
    plain = "--" + name.replace("_", "-")
    # In Annotated the first name of an option is where a default would stand.
    names = [*([info.default] if isinstance(info.default, str) else []), *(info.param_decls or ())]
    if kind is bool:
        words = ", ".join(names) or f"{plain} / --no-{plain[2:]}"
    else:
        words = f"{', '.join(names) or plain} {metavar(kind, info)}"
    several = get_origin(flat_list(kind)) is list and "several times" not in (info.help or "")
    repeat = " Can be given several times." if several else ""
    return [code(words), code(shown(default)), bounds(info), (info.help or "") + repeat]


def flat_list(kind: Any) -> Any:
    """The list in a type such as list[str] | None, else the type itself."""
    return next((part for part in get_args(kind) if get_origin(part) is list), kind)


def command_page(app: Any) -> str:
    """The page of all commands."""
    lines = [NOTE, "", "# The command line", ""]
    lines += ["`edgedistill COMMAND --help` prints the same.", ""]
    for typed, function in commands(app):
        lines += [f"## {typed}", "", *prose(inspect.getdoc(function) or ""), ""]
        arguments, options = [], []
        for name, kind, info, default in parameters(function):
            if getattr(info, "hidden", False):
                continue
            if info is not None and "Option" in type(info).__name__:
                options.append(option_row(name, kind, info, default))
            else:
                word = getattr(info, "metavar", None) or name.upper()
                arguments.append([code(word), shown(default), getattr(info, "help", None) or ""])
        if arguments:
            lines += table(["argument", "default", "meaning"], arguments)
        if options:
            lines += table(["option", "default", "range", "meaning"], options)
    return "\n".join(lines).rstrip() + "\n"


def prose(text: str) -> list[str]:
    """A docstring with its example as a block of code."""
    before, example, after = text.partition("Example: ")
    lines = [line.rstrip() for line in before.strip().splitlines()]
    return [*lines, "", "```", after.strip(), "```"] if example else lines


# Sections of a recipe


def own_fields(kind: type[Settings]) -> dict[str, FieldInfo]:
    """The fields that a section itself declares."""
    own = inspect.get_annotations(kind)
    return {name: field for name, field in kind.model_fields.items() if name in own}


NAMES = {str: "text", int: "integer", float: "number", bool: "true or false"}


def plain_words(kind: Any) -> str:
    """A type without parts, in words."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        return f"section {title(kind)}"
    if isinstance(kind, type) and issubclass(kind, Enum):
        return ", ".join(f"`{each.value}`" for each in kind)
    return "null" if kind is types.NoneType else NAMES.get(kind, str(kind))


def type_words(kind: Any) -> str:
    """A type in words."""
    if get_origin(kind) is typing.Annotated:
        kind = get_args(kind)[0]
    parts = [
        type_words(part) for part in get_args(kind) if isinstance(part, type) or get_args(part)
    ]
    match get_origin(kind):
        case typing.Literal:
            return ", ".join(f"`{value}`" for value in get_args(kind))
        case typing.Union | types.UnionType:
            return " or ".join(parts)
        case builtins.tuple:
            listed = Ellipsis in get_args(kind)
            return f"list of {parts[0]}" if listed else f"[{', '.join(parts)}]"
        case builtins.dict:
            return "mapping"
    return plain_words(kind)


def title(kind: type[Settings]) -> str:
    """The name of a section for people."""
    owner = kind.__qualname__.split(".")[0]
    return owner if kind.__name__ == "Config" else kind.__name__


SIGNS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}


def limits(field: FieldInfo) -> str:
    """The range of a field, in words."""
    words = []
    for limit in field.metadata:
        for name, sign in SIGNS.items():
            value = getattr(limit, name, None)
            if value is not None:
                words.append(sign.format(f"{value:g}" if abs(value) < 10**6 else f"{value:,}"))
    return ", ".join(words)


def default_words(field: FieldInfo) -> str:
    """A field's default as a recipe has it."""
    if field.default_factory is not None:
        value: Any = field.get_default(call_default_factory=True)
    elif field.default is PydanticUndefined:
        return "required"
    else:
        value = field.default
    if isinstance(value, Settings):
        return "its own"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return code(str(value).lower())
    if isinstance(value, tuple):
        value = "[" + ", ".join(str(each) for each in value) + "]"
    return code(str(value)) or code('""')


def rows(kind: type[Settings], fields: dict[str, FieldInfo], before: str = "") -> list[list[str]]:
    """A row for each field."""
    told = meanings(kind)
    older: dict[str, list[str]] = {name: [] for name in fields}
    for old, new in kind.all_old_keys().items():
        section, dot, key = new.partition(".")
        if section in older:
            older[section].append(f"`{old}` for `{key}`" if dot else f"`{old}`")
    return [
        [
            code(before + name),
            type_words(field.annotation),
            default_words(field),
            limits(field),
            " ".join([as_typed(told.get(name, "")), *also_named(older[name])]).strip(),
        ]
        for name, field in fields.items()
    ]


def as_typed(text: str) -> str:
    """A description with YAML's word for no value."""
    return re.sub(r"\bNone\b", "null", text)


def also_named(names: list[str]) -> list[str]:
    """A sentence on the older names of a key, if it has any."""
    return [f"Older name{'s' * (len(names) > 1)}: {', '.join(names)}."] if names else []


OLDER = "A key with an older name is read under both; `recipes show` prints the older one."

HEADS = ("key", "type", "default", "range", "meaning")


def sections(kind: type[Settings]) -> Iterator[tuple[str, type[Settings]]]:
    """(key, section) of the fields of `kind` that are sections."""
    for name, field in kind.model_fields.items():
        for part in inner(field.annotation):
            yield name, part


def inner(kind: Any) -> Iterator[type[Settings]]:
    """The sections inside a type."""
    if isinstance(kind, type) and issubclass(kind, Settings):
        yield kind
    for part in get_args(kind):
        yield from inner(part)


def section_lines(kind: type[Settings], key: str, level: int = 2) -> list[str]:
    """A section with its table, and those inside it."""
    lines = [f"{'#' * level} {key}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
    lines += table(HEADS, rows(kind, kind.model_fields, f"{key}."))
    for name, part in sections(kind):
        lines += section_lines(part, f"{key}.{name}", level + 1)
    return lines


def recipe_page() -> str:
    """The page of a recipe's keys."""
    from edgedistill.recipes.schema import Recipe

    inside = dict(sections(Recipe))
    own = {name: field for name, field in Recipe.model_fields.items() if name not in inside}
    lines = [NOTE, "", "# Keys of a recipe", ""]
    lines += ["A recipe is a YAML file. A key is set on the command line as `key.sub=value`."]
    lines += ["`edgedistill recipes show NAME` prints a recipe with all its values.", ""]
    lines += [OLDER, ""]
    lines += table(HEADS, rows(Recipe, own))
    lines += ["`objective` has the keys of its method: [Method options](method-options.md).", ""]
    for key, kind in inside.items():
        lines += section_lines(kind, key)
    return "\n".join(lines).rstrip() + "\n"


def method_page() -> str:
    """The page of the keys of every method."""
    from edgedistill import objectives

    shared: dict[str, type[Settings]] = {}
    lines = [NOTE, "", "# Method options", ""]
    lines += ["A method's keys stand under `objective` in a recipe, beside `name`.", OLDER, ""]
    for name in sorted(objectives.OBJECTIVES):
        method = objectives.find(name)
        config = method.Config
        bases = [each for each in config.__mro__[1:] if own_fields_of(each)]
        own = own_fields(config) if config.__qualname__.split(".")[0] == method.__name__ else {}
        if own_fields(config) and not own:
            bases.insert(0, config)
        for each in (*bases, *(part for base in (config, *bases) for part in nested(base))):
            shared[title(each)] = each
        lines += [f"## {name}", ""]
        lines += table(HEADS, rows(config, own)) if own else []
        lines += [also(bases, bool(own)), ""] if bases or not own else []
    lines += ["## Shared keys", "", SHARED, ""]
    for name, kind in sorted(shared.items()):
        lines += [f"### Keys of {name}", "", inspect.cleandoc(kind.__doc__ or ""), ""]
        lines += table(HEADS, rows(kind, own_fields(kind)))
    linked = re.sub(r"section (\w+)", r"section [\1](#keys-of-\1)", "\n".join(lines))
    return re.sub(r"#keys-of-\w+", lambda found: found[0].lower(), linked).rstrip() + "\n"


SHARED = "These tables belong to several methods, or are sections inside their keys."


def own_fields_of(kind: type) -> bool:
    """Whether a class is a section with fields of its own."""
    return issubclass(kind, Settings) and kind is not Settings and bool(own_fields(kind))


def nested(kind: type[Settings]) -> Iterator[type[Settings]]:
    """The sections inside the keys of `kind`, at any depth."""
    for _, part in sections(kind):
        yield part
        yield from nested(part)


def also(bases: Sequence[type[Settings]], own: bool) -> str:
    """The sentence that says which shared tables a method has."""
    if not bases:
        return "This method has no keys."
    links = " and ".join(f"[{title(each)}](#keys-of-{title(each).lower()})" for each in bases)
    return f"The keys of {links} {'also ' if own else ''}apply."


SIGNATURES = re.compile(r"(<!-- Signatures[^>]*-->\n).*?(<!-- End -->)", re.DOTALL)
"""The part of python.md that is made from the functions' signatures."""


WIDTH = 110
"""Columns of a signature in one line."""


def argument(each: inspect.Parameter) -> str:
    """An argument with its type and default."""
    stars = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(each.kind.name, "")
    text = f"{stars}{each.name}: {each.annotation}"
    if each.default is each.empty:
        return text
    return f"{text} = {'...' if callable(each.default) else repr(each.default)}"


def signature(name: str, value: Any) -> str:
    """A function as it is called, with the types of what it takes; a class by what it is."""
    if inspect.isclass(value):
        return f"ed.{name}  # {(inspect.getdoc(value) or '').splitlines()[0]}"
    found = inspect.signature(value)
    inside = list[str]()
    for each in found.parameters.values():
        if each.kind is each.KEYWORD_ONLY and "*" not in inside:
            inside.append("*")
        inside.append(argument(each))
    alone = sum(each.kind is each.POSITIONAL_ONLY for each in found.parameters.values())
    if alone:
        inside.insert(alone, "/")
    one_line = f"ed.{name}({', '.join(inside)}) -> {found.return_annotation}"
    if len(one_line) <= WIDTH:
        return one_line
    lines = "".join(f"    {each},\n" for each in inside)
    return f"ed.{name}(\n{lines}) -> {found.return_annotation}"


def python_page() -> str:
    """python.md with today's signatures."""
    page = (REFERENCE / "python.md").read_text(encoding="utf-8")
    public = {name: getattr(edgedistill, name) for name in edgedistill.__all__}
    functions = [signature(n, v) for n, v in public.items() if not inspect.isclass(v)]
    classes = [signature(n, v) for n, v in public.items() if inspect.isclass(v)]
    made = "\n".join(["```python", *functions, "", *classes, "```", ""])
    return SIGNATURES.sub(lambda found: f"{found[1]}\n{made}\n{found[2]}", page)


def pages() -> dict[str, str]:
    """File name -> what it must hold."""
    from edgedistill.cli import app

    return {
        "cli.md": command_page(app),
        "recipes.md": recipe_page(),
        "method-options.md": method_page(),
        "python.md": python_page(),
    }


def stale(folder: Path = REFERENCE) -> list[str]:
    """Names of the pages in `folder` that are missing or out of date."""
    return [
        name
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the pages and charts, or with --check only say which are out of date."""
    import charts

    if "--check" in sys.argv[1:]:
        old = [f"reference/{name}" for name in stale()]
        old += [f"results/charts/{name}" for name in charts.stale()]
        for name in old:
            print(f"docs/{name} is out of date: run make reference", file=sys.stderr)
        return 1 if old else 0
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")
    charts.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
