"""Layers, sizes, configurations, paths: what keeps the repository a plugin that others can read.

Each check is a function from text to faults, so that the last tests can show that it finds one.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastreid.config import CfgNode

import occluded_reid
from occluded_reid.config import get_cfg, load_config
from occluded_reid.config.methods import installed_methods
from occluded_reid.modeling.keys import list_unread_keys

ADD_KEYS = installed_methods()
ROOT = Path(__file__).resolve().parent.parent
METHODS = ("fed_plugin", "aonet_plugin")
PACKAGES = ("occluded_reid", *METHODS, "gallery_search")
PRODUCT = (*PACKAGES, "tools", "benchmarks")
LAYERS = (  # of rooms; a room imports itself and the layers above its own line
    ("compat",),
    ("utils",),
    ("config", "checkpoint", "synthetic"),
    ("modeling", "data"),
    ("evaluation",),
    ("visualization",),
    ("engine", "deploy"),
    ("gallery_search",),
    METHODS,
    ("commands",),
    ("tools",),
    ("benchmarks",),
)
METHODS_IMPORT = {"compat", "utils", "config", "modeling"}
MAX_FUNCTION_LINES = 60  # of code
MAX_FILE_LINES = 300
COMPAT = Path("occluded_reid/compat.py")  # the one file that may be long, and that knows versions


def repository_files() -> list[Path]:
    """What is committed or could be, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        names = [Path(line) for line in listed.stdout.splitlines()]
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive
        left_out = {
            ".venv",
            ".venv-extras",
            ".venv-trackers",
            "build",
            "dist",
            "logs",
            "datasets",
            "__pycache__",
        }
        found = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        names = [path for path in found if not left_out.intersection(path.parts)]
    return sorted(path for path in names if (ROOT / path).is_file())


FILES = repository_files()
PYTHON = [path for path in FILES if path.suffix == ".py"]
TOOLS = {path.stem for path in PYTHON if path.parts[0] == "tools"}
CONFIGS = [path for path in FILES if path.suffix in (".yml", ".yaml") and "configs" in path.parts]
PAGES = [path for path in FILES if path.suffix == ".md"]


def parse(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Dotted names of absolute imports; relative ones stay in their package anyway."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def find_room(module: str) -> str:
    """Return the room of a module, or its first name if it is not ours: ``utils``, ``torch``."""
    top, _, rest = module.partition(".")
    if module in TOOLS:
        return "tools"
    return rest.split(".")[0] if top == "occluded_reid" else top


def list_importable(room: str) -> set[str]:
    """Return the rooms that ``room`` may import."""
    if room in METHODS:
        return {room, *METHODS_IMPORT}
    layer = next(index for index, rooms in enumerate(LAYERS) if room in rooms)
    own = set() if room in ("commands", "tools") else {room}  # no command imports another
    return own.union(*LAYERS[:layer])


def layer_faults(room: str, tree: ast.AST) -> list[str]:
    """Rooms that ``room`` imports and must not."""
    ours = {name for rooms in LAYERS for name in rooms} | {"tests"}
    imported = {find_room(module) for module in imported_modules(tree)}
    return sorted((imported & ours) - list_importable(room))


def version_faults(tree: ast.AST) -> list[str]:
    """Ways to ask for a version; ``importlib.metadata.version`` is left for reports."""
    faults = [name for name in imported_modules(tree) if name.split(".")[0] == "packaging"]
    faults += [name for name in imported_modules(tree) if name == "sys.version_info"]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("__version__", "version_info"):
            faults.append(f"{node.attr} in line {node.lineno}")
    return faults


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: no blank lines, comments or docstrings."""
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in (*layout, tokenize.ENDMARKER):
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if is_text and isinstance(node.value.value, str):
            lines.difference_update(range(node.lineno, node.end_lineno + 1))
    return lines


def compat_faults(path: Path) -> list[str]:
    """Imports of fast-reid that neither the file nor a package around it precedes by compat."""
    modules = list(imported_modules(parse(path)))
    around = [folder / "__init__.py" for folder in path.parents if folder != Path()]
    packages = [one for one in around if (ROOT / one).is_file()]
    first = [name for one in packages for name in imported_modules(parse(one))]
    if "occluded_reid.compat" in (*first, *modules):
        return []
    return [name for name in modules if name.split(".")[0] == "fastreid"]


def size_faults(source: str) -> list[str]:
    """Functions and files that nobody reads to the end."""
    faults = []
    lines = code_lines(source)
    if (length := len(source.splitlines())) > MAX_FILE_LINES:
        faults.append(f"file of {length} lines")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = len(lines.intersection(range(node.lineno, node.end_lineno + 1)))
            if length > MAX_FUNCTION_LINES:
                faults.append(f"{node.name} of {length} lines")
    return faults


# Not at the end of another path, as in "network/work/": only where a path begins.
MACHINE_PATH = re.compile(r"(?<![\w.$}~/-])/(?:work|root|home|export|Users)/\w")


def path_faults(text: str) -> list[str]:
    """Absolute paths that exist on somebody's machine only."""
    return [line.strip() for line in text.splitlines() if MACHINE_PATH.search(line)]


def leaves(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif key != "_BASE_":
            yield f"{prefix}{key}", value


def repeated_keys(path: Path) -> list[str]:
    """Keys of a YAML file whose value it would inherit anyway."""
    stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    inherited, merged = get_cfg(ADD_KEYS), get_cfg(ADD_KEYS)
    if base := stated.get("_BASE_"):
        inherited.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(path.parent / base)))
    merged.merge_from_other_cfg(CfgNode(CfgNode.load_yaml_with_base(path)))
    before, after = dict(leaves(inherited)), dict(leaves(merged))
    return [key for key, _ in leaves(stated) if key in before and before[key] == after[key]]


def make_targets(makefile: str) -> set[str]:
    return set(re.findall(r"^([\w-]+):(?!=)", makefile, flags=re.MULTILINE))


def make_commands(page: str) -> set[str]:
    """Targets in ``make X`` of a page's code: fenced blocks and single backticks."""
    blocks = re.findall(r"^```.*?^```", page, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", page)
    found = (re.match(r"(?:\$ )?make ((?:[\w-]+(?= |$) ?)+)", line.strip()) for line in lines)
    return {target for match in found if match for target in match[1].split()}


def test_rooms_import_lower_layers_only() -> None:
    faults = {}
    for path in PYTHON:
        room = find_room(".".join(path.with_suffix("").parts))
        if path.parts[0] not in PRODUCT or room == "__init__":  # what the package names is lazy
            continue
        if found := layer_faults(room, parse(path)):
            faults[str(path)] = found
    assert faults == {}


@pytest.mark.parametrize("path", [p for p in PYTHON if p.parts[0] in PRODUCT], ids=str)
def test_one_file_knows_about_versions(path: Path) -> None:
    if path != COMPAT:
        assert version_faults(parse(path)) == []


@pytest.mark.parametrize("package", [*PACKAGES, "benchmarks"])
def test_compat_comes_before_fastreid(package: str) -> None:
    scripts = Path("benchmarks")  # its scripts import its packages first
    files = [path for path in PYTHON if path.parts[0] == package and path.parent != scripts]
    files = [path for path in files if path != COMPAT]
    assert {str(path): faults for path in files if (faults := compat_faults(path))} == {}


@pytest.mark.parametrize("path", [p for p in PYTHON if p.parts[0] in PRODUCT], ids=str)
def test_functions_and_files_are_short(path: Path) -> None:
    faults = size_faults((ROOT / path).read_text(encoding="utf-8"))
    assert [fault for fault in faults if path != COMPAT or not fault.startswith("file")] == []


def test_no_path_of_a_machine_is_committed() -> None:
    faults = {}
    for path in FILES:
        data = (ROOT / path).read_bytes()
        if b"\0" not in data and (found := path_faults(data.decode("utf-8", "replace"))):
            faults[str(path)] = found
    assert faults == {}


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_config_loads_and_states_only_differences(path: Path) -> None:
    cfg = load_config(str(ROOT / path), [], add_keys=ADD_KEYS)
    assert repeated_keys(ROOT / path) == []
    own, default = dict(leaves(cfg)), dict(leaves(get_cfg(ADD_KEYS)))
    assert [key for key in list_unread_keys(cfg) if own[key] != default[key]] == []
    stated = yaml.safe_load((ROOT / path).read_text(encoding="utf-8")) or {}
    texts = [(key, value) for key, value in leaves(stated) if isinstance(value, str)]
    assert [pair for pair in texts if pair[1].startswith(("/", "~"))] == []


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_make_commands_of_the_pages_exist(path: Path) -> None:
    targets = make_targets((ROOT / "Makefile").read_text(encoding="utf-8"))
    assert make_commands((ROOT / path).read_text(encoding="utf-8")) <= targets


def test_pinned_versions_are_a_plain_list() -> None:
    pins = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    plain = re.compile(r"[a-z0-9-]+==[\w.]+( ; [\w.<>=!' ()*-]+)?")
    assert [line for line in pins if not plain.fullmatch(line)] == []
    pinned = {line.split("==")[0] for line in pins}
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    named = {
        name for name, _ in re.findall(r'^ {4}"([a-z0-9-]+)([<>=].*?)"', project, re.MULTILINE)
    }
    assert named and named <= pinned


def test_fastreid_has_one_version() -> None:
    files = ("Makefile", "pyproject.toml", "Dockerfile")
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in files]
    versions = [set(re.findall(r"fastreid==([\d.]+)", text)) for text in texts]
    assert versions == [{"1.4.0"}] * 3


def test_the_citation_names_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == occluded_reid.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", citation["version"])


def test_the_image_runs_as_a_user_and_holds_what_the_wheel_needs() -> None:
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    assert len(re.findall(r"^FROM ", text, re.MULTILINE)) == 2
    assert re.findall(r"^USER (\w+)$", text, re.MULTILINE) == ["1000"]
    kept = set(re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    copied = {name for line in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
              for name in line.split()}  # fmt: skip
    assert copied == kept and {"configs", "projects", *PACKAGES} <= copied


def test_the_workflow_calls_what_people_run() -> None:
    (file,) = (ROOT / ".github" / "workflows").glob("*.yml")
    workflow = yaml.safe_load(file.read_text(encoding="utf-8"))
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert ".ci/run" in steps and "docker build -t occluded-reid ." in steps


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("compat", "from occluded_reid.utils import errors"),
        ("utils", "from occluded_reid.config import load_config"),
        ("config", "import occluded_reid.checkpoint.convert"),
        ("data", "from occluded_reid import modeling"),
        ("evaluation", "from occluded_reid.engine import trainer"),
        ("deploy", "def f():\n    from occluded_reid.engine.trainer import Trainer"),
        ("engine", "import fed_plugin.head"),
        ("visualization", "from gallery_search.store import index"),
        ("gallery_search", "def f():\n    from tools import train_net"),
        ("fed_plugin", "from aonet_plugin.losses import x"),
        ("fed_plugin", "from occluded_reid.data.build import x"),
        ("aonet_plugin", "import tests.conftest as c"),
        ("commands", "import occluded_reid.commands.train_net"),
        ("gallery_search", "from occluded_reid.commands import search"),
        ("tools", "import train_net"),
        ("tools", "from benchmarks import run"),
    ],
)
def test_layer_check_sees_faults(room: str, source: str) -> None:
    assert len(layer_faults(room, ast.parse(source))) == 1
    assert layer_faults("benchmarks", ast.parse("from occluded_reid.deploy import export")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.__version__",
        "import packaging.version",
        "sys.version_info",
        "from sys import version_info",
    ],
)
def test_version_check_sees_faults(source: str) -> None:
    assert version_faults(ast.parse(source))
    assert not version_faults(ast.parse("__version__ = '1'"))


def test_size_check_sees_faults() -> None:
    body = "".join(f"    x = {number}\n" for number in range(MAX_FUNCTION_LINES))
    assert size_faults(f"def f():\n{body}") == ["f of 61 lines"]
    documented = body.replace("    x = 0\n", '    """Say.\n\n    More.\n    """\n\n    # why\n', 1)
    assert size_faults(f"def f():\n{documented}") == []
    assert size_faults("x = 1\n" * (MAX_FILE_LINES + 1)) == [f"file of {MAX_FILE_LINES + 1} lines"]


def test_path_check_sees_faults() -> None:
    for folder in ("work", "root", "home"):
        assert path_faults(f"data = '/{folder}/me/data'")
        assert path_faults(f"/{folder}/x")
        assert not path_faults(f"https://example.org/{folder}/x and my/{folder}/x and ./{folder}/x")


def test_config_check_sees_faults(tmp_path: Path) -> None:
    (tmp_path / "base.yml").write_text("SOLVER:\n  BASE_LR: 0.5\n")
    child = tmp_path / "child.yml"
    child.write_text("_BASE_: base.yml\nSOLVER:\n  BASE_LR: 0.5\n  MAX_EPOCH: 7\nSEED: -1\n")
    assert repeated_keys(child) == ["SOLVER.BASE_LR", "SEED"]


def test_page_check_sees_faults() -> None:
    page = "Type `make demo` and make coffee.\n```\nmake test lint  # both\n$ make x-y\n```\n"
    assert make_commands(page) == {"demo", "test", "lint", "x-y"}
    assert make_targets("a-b: c\n\ttest: no\nVAR := x\nd:\n") == {"a-b", "d"}
