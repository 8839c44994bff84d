"""The house rules: sizes, layers, what may not be written down, and documents in step."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

from appliance.config.load import loads

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70
INIT_STATEMENTS_MAX = 2

# Where this repository's files were made, or where packages came from, is nobody's business; the
# words are put together here so that this file may be read by its own test.
_FORBIDDEN = (
    "/" + "work/",
    "/" + "tmp/w/",
    "/" + "root/",
    "py" + "pi.org",
    "python" + "hosted.org",
    "registry." + "npmjs",
    "deb.deb" + "ian.org",
    "TO" + "DO",
    "FIX" + "ME",
)
_TEXT_ENDINGS = (".py", ".md", ".toml", ".txt", ".in", ".sh", ".service", ".json", ".yml", "")
_WORKTREE = ".git"  # a file in a worktree, that says where the repository lies
_SKIPPED_FOLDERS = {"build", "demo-data", "var"}
_MARKDOWN_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


def _python_files(*folders: str) -> Iterator[str]:
    for folder in folders:
        for place, _, names in os.walk(os.path.join(ROOT, folder)):
            for name in sorted(names):
                if name.endswith(".py"):
                    yield os.path.relpath(os.path.join(place, name), ROOT)


def _text_files() -> Iterator[str]:
    for place, folders, names in os.walk(ROOT):
        folders[:] = [
            name
            for name in folders
            if (not name.startswith(".") or name == ".ci")
            and name not in _SKIPPED_FOLDERS
            and not name.endswith((".egg-info", "__pycache__"))
        ]
        for name in names:
            if name == _WORKTREE or name.startswith(".coverage"):
                continue
            if os.path.splitext(name)[1] in _TEXT_ENDINGS:
                yield os.path.relpath(os.path.join(place, name), ROOT)


def _read(path: str) -> str:
    with open(os.path.join(ROOT, path), encoding="utf-8") as file:
        return file.read()


def test_no_file_is_longer_than_the_stop() -> None:
    long = {
        path: lines
        for path in _python_files("appliance", "tests")
        if (lines := _read(path).count("\n")) > FILE_LINES_MAX
    }
    assert long == {}


def test_no_function_is_longer_than_the_stop() -> None:
    long = {}
    for path in _python_files("appliance"):
        for node in ast.walk(ast.parse(_read(path))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines >= FUNCTION_LINES_MAX:
                    long[f"{path}:{node.name}"] = lines
    assert long == {}


def test_package_files_are_near_empty() -> None:
    full = [
        path
        for path in _python_files("appliance")
        if path.endswith("__init__.py") and len(ast.parse(_read(path)).body) > INIT_STATEMENTS_MAX
    ]
    assert full == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        path
        for path in _python_files("appliance", "tests")
        if not path.endswith("__init__.py") and not ast.get_docstring(ast.parse(_read(path)))
    ]
    assert silent == []


def test_no_forbidden_word_is_written_down() -> None:
    found = {}
    for path in _text_files():
        text = _read(path)
        words = [word for word in _FORBIDDEN if word in text]
        if words:
            found[path] = words
    assert found == {}


def test_locks_name_every_package_with_hashes_and_no_address() -> None:
    for purpose in ("run", "demo", "test"):
        text = _read(f"requirements/{purpose}.txt")
        assert "://" not in text
        assert "--index-url" not in text
        for entry in re.split(r"\n(?=[a-z0-9])", text.strip(), flags=re.IGNORECASE):
            assert re.match(r"[\w.-]+(\[[\w,]+\])?==", entry), entry[:80]
            assert "--hash=sha256:" in entry, entry[:80]


def test_the_locks_are_supersets_of_each_other() -> None:
    names = [
        set(re.findall(r"^([\w.-]+)==(\S+)", _read(f"requirements/{purpose}.txt"), re.MULTILINE))
        for purpose in ("run", "demo", "test")
    ]
    assert names[0] <= names[1] <= names[2]


def test_what_the_project_needs_is_in_the_lock() -> None:
    needed = tomllib.loads(_read("pyproject.toml"))["project"]["dependencies"]
    locked = _read("requirements/run.txt")
    for line in needed:
        name = re.split(r"[<>=\[; ]", line)[0]
        assert re.search(rf"^{re.escape(name)}==", locked, re.MULTILINE), name


def test_links_between_documents_lead_somewhere() -> None:
    broken = []
    for path in _text_files():
        if not path.endswith(".md"):
            continue
        folder = os.path.join(ROOT, os.path.dirname(path))
        broken += [
            f"{path} -> {target}"
            for target in _MARKDOWN_LINK.findall(_read(path))
            if "://" not in target and not os.path.exists(os.path.join(folder, target))
        ]
    assert broken == []


def test_every_page_is_reached_from_the_index() -> None:
    reached: set[str] = set()
    waiting = ["docs/index.md"]
    while waiting:
        path = waiting.pop()
        if path in reached or not path.endswith(".md"):
            continue
        if not os.path.exists(os.path.join(ROOT, path)):
            continue  # a broken link is another test's finding
        reached.add(path)
        waiting += [
            os.path.normpath(os.path.join(os.path.dirname(path), target))
            for target in _MARKDOWN_LINK.findall(_read(path))
            if "://" not in target
        ]
    pages = {path for path in _text_files() if path.startswith("docs/") and path.endswith(".md")}
    assert pages - reached == set()


def test_layers_import_only_to_their_right() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-1000:]


def _calls_of(path: str, names: frozenset[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(_read(path))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            called = f"{node.value.id}.{node.attr}"
            if called in names:
                yield f"{path}:{node.lineno} {called}"


def test_only_foundation_renames_flushes_and_unlinks() -> None:
    durable = frozenset(
        f"os.{name}" for name in ("fsync", "fdatasync", "rename", "replace", "unlink", "remove")
    )
    found = [
        call
        for path in _python_files("appliance")
        if not path.startswith("appliance/foundation/")
        for call in _calls_of(path, durable)
    ]
    assert found == []


def test_the_configuration_in_the_readme_is_sound() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", _read("README.md"), re.DOTALL)
    assert loads(example).node.name == "site-a"
