#!/usr/bin/env python3
"""Run the tests of app/ that are marked `versions` with other Celery, kombu and redis-py.

    versions.py PAIR [PYTEST OPTION...]    with one of app/tests/versions/*.txt, such as 5.4-oldest
    versions.py --of-commit [...]          with the one whose turn it is at this commit
    versions.py --all                      with each; writes the table in docs/images.md
    versions.py --row PAIR                 with one; writes its row there

Each is installed in .cache/versions/PAIR. The exit status is pytest's, or 1 if any has failed.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import subprocess
import sys
import time

from checks import jobs, measure

ROOT, BIN = jobs.ROOT, jobs.BIN
LOCKS = ROOT / "app" / "tests" / "versions"
VENVS = ROOT / ".cache" / "versions"
PAGE = ROOT / "docs" / "images.md"
BEGIN, END = "<!-- versions: begin -->", "<!-- versions: end -->"
SHOWN = ("celery", "kombu", "redis", "billiard")


def pairs() -> list[str]:
    """Return the names of all, the oldest Celery first."""
    return sorted(path.stem for path in LOCKS.glob("*.txt"))


def pinned(text: str) -> dict[str, str]:
    """Return the versions by package from a lock file's text.

    >>> pinned("kombu==5.3.4 \\\\\\n    --hash=sha256:00\\nredis==4.4.4 \\\\\\n")
    {'kombu': '5.3.4', 'redis': '4.4.4'}
    """
    return dict(re.findall(r"^([\w.-]+)==(\S+)", text, re.M))


def of_commit(commit: str, known: list[str]) -> str:
    """Return the pair whose turn it is: each has its commits, and a commit has always the same.

    >>> of_commit("0000000a", ["one", "other"])
    'one'
    """
    return known[int(commit[:8], 16) % len(known)]


def head() -> str:
    """Return the name of the commit that is checked out, zeros outside a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "0" * 40


def install(pair: str) -> pathlib.Path:
    """Make the environment of a pair unless it is there; return its Python.

    Raises:
        subprocess.CalledProcessError: it cannot be installed; what failed was printed.
    """
    lock, venv = LOCKS / f"{pair}.txt", VENVS / pair
    stamp, wanted = venv / "stamp", f"{sys.version}\n{lock.read_text()}"
    own, python = str(BIN / "python"), venv / "bin" / "python"
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    uv = [str(BIN / "uv"), "--quiet", "--no-progress"]
    make = ["venv", "--no-project", "--clear", "--python", own, str(venv)]
    subprocess.run([*uv, *make], check=True)
    what = ["--require-hashes", "--requirement", str(lock)]
    # uv takes seconds, pip half a minute; but uv does not read pip's configuration. Workers in
    # tests write no bytecode: without it each would compile what it loads.
    into = ["pip", "install", "--python", str(python), "--compile-bytecode"]
    if subprocess.run([*uv, *into, *what], check=False).returncode:
        pip = ["-m", "pip", "--quiet", "--disable-pip-version-check", "--python", str(python)]
        subprocess.run([own, *pip, "install", *what], check=True)
    stamp.write_text(wanted)
    return python


def command(pair: str, *options: str) -> list[str]:
    """Return the command line of the tests with a pair, which is installed."""
    words = ["-m", "pytest", "--quiet", "-p", "no:cacheprovider", "-m", "versions"]
    return [str(install(pair)), *words, *options, "app/tests"]


def run_one(pair: str) -> tuple[str, bool]:
    """Run the tests with a pair; return its row of the table, and whether all have passed."""
    job, started = jobs.Job(f"versions/{pair}", (), junit=True), time.monotonic()
    job.report.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command(pair, f"--junitxml={job.report}"), cwd=ROOT, check=False)
    passed, failed = measure.count(job, done.returncode)
    versions = pinned((LOCKS / f"{pair}.txt").read_text())
    cells = [versions[name] for name in SHOWN]
    print(f"{pair}: {passed} passed, {failed} failed, {time.monotonic() - started:.0f} s")
    return f"| {' | '.join([*cells, str(passed), str(failed)])} |", not failed


def merged(table: str, rows: list[str]) -> list[str]:
    """Return the rows of a table, with these in the place of those of the same versions.

    >>> merged("\\n| Celery |\\n|---|\\n| 5.4 | 1 | 4 | 4 | 9 |", ["| 5.4 | 1 | 4 | 4 | 8 |"])
    ['| 5.4 | 1 | 4 | 4 | 8 |']
    """
    found = {tuple(row.split("|")[1:5]): row for row in [*table.splitlines(), *rows]}
    return [row for versions, row in found.items() if "".join(versions[:1]).strip()[:1].isdigit()]


def write(page: pathlib.Path, rows: list[str]) -> None:
    """Write the table between its markers."""
    head = [
        "| Celery | kombu | redis-py | billiard | Tests passed | Failed |",
        "|---|---|---|---|---|---|",
    ]
    table = "\n".join([BEGIN, *head, *rows, END])
    text, found = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: table, page.read_text(), flags=re.S
    )
    if not found:
        sys.exit(f"versions.py: {page} has no {BEGIN}")
    page.write_text(text)


def run_all() -> int:
    """Run the tests with each pair, write the table, and return the exit status."""
    rows, passed = zip(*[run_one(pair) for pair in pairs()], strict=True)
    write(PAGE, list(rows))
    return int(not all(passed))


def run_row(pair: str) -> int:
    """Run the tests with a pair, write its row of the table, and return the exit status."""
    row, passed = run_one(pair)
    write(PAGE, merged(PAGE.read_text().partition(BEGIN)[2].partition(END)[0], [row]))
    return int(not passed)


def main() -> int:
    """Run what the command line asks for and return the exit status."""
    parser = argparse.ArgumentParser(description="Run app/tests with other versions of Celery.")
    parser.add_argument("pair", nargs="?", choices=pairs(), metavar="PAIR", help=", ".join(pairs()))
    parser.add_argument("--of-commit", action="store_true", help="the one whose turn it is")
    parser.add_argument("--all", action="store_true", help="each, and write the table")
    parser.add_argument("--row", action="store_true", help="write the row of PAIR into the table")
    options, words = parser.parse_known_args()
    if (options.pair is not None) + options.of_commit + options.all != 1:
        parser.error("name one PAIR, or --of-commit, or --all")
    if options.row and not options.pair:
        parser.error("--row needs the name of a PAIR")
    if options.all or options.row:
        if words:
            parser.error("the table is of all tests: leave the options of pytest out")
        return run_row(options.pair) if options.pair else run_all()
    pair = options.pair or of_commit(head(), pairs())
    print(f"versions.py: {pair}", flush=True)
    return subprocess.run(command(pair, *words), cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
