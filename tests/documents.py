"""Blocks of Markdown documents, run as a reader runs them: in their order, in the current folder.

`bash` and `python` blocks run. Blocks in which something is to be filled in, such as a path, are `sh`, and do not.
"""

import re
import shlex
from pathlib import Path

from commands import evomerge


def blocks(text, *languages):
    """Return the languages and texts of a document's blocks in these languages, in their order."""
    return re.findall(rf"^```({'|'.join(languages)})\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(found):
    """Run blocks of `evomerge` commands and of files that `cat` writes, and of Python; there are no others."""
    for language, code in found:
        if language == "bash":
            run_shell(code)
        else:
            exec(code, {"__name__": "__main__"})


def run_shell(code):
    commands, *others = re.split(r"^cat > (\S+) <<'EOF'\n(.*?^)EOF\n", code, flags=re.DOTALL | re.MULTILINE)
    run_lines(commands)
    for name, content, commands in zip(others[::3], others[1::3], others[2::3], strict=True):
        Path(name).write_text(content)
        run_lines(commands)


def run_lines(commands):
    for line in commands.splitlines():
        if words := shlex.split(line, comments=True):
            assert words[0] == "evomerge"
            evomerge(*words[1:])
